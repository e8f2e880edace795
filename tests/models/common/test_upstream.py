"""What transformers' own common tests demand of a model, and where it is held here; or what differs, and why.

The names are those of transformers 5.23: its ModelTesterMixin, GenerationTesterMixin, ConfigTester,
PipelineTesterMixin, TrainingTesterMixin, ExportTesterMixin and the mixins for several devices. A table in
docs/models.md is made from DIFFERENT and NOT_ASKED:

    python tests/models/common/test_upstream.py
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

MODELS = Path(__file__).parents[1]
DOCUMENT = MODELS.parents[1] / "docs" / "models.md"

# The tests here that hold what is demanded, and under each the names of the tests there that demand it.
HELD = """
common/test_configuration.py::test_what_every_model_of_texts_has_can_be_read_and_assigned
    create_and_test_config_common_properties
common/test_configuration.py::test_json_holds_what_was_given
    create_and_test_config_to_json_string create_and_test_config_to_json_file
common/test_configuration.py::test_folders
    create_and_test_config_from_and_save_pretrained
    create_and_test_config_from_and_save_pretrained_subfolder
common/test_configuration.py::test_labels_follow_their_number
    create_and_test_config_with_num_labels
common/test_configuration.py::test_nothing_need_be_given_and_nothing_is_said
    check_config_can_be_init_without_params
common/test_configuration.py::test_keywords_of_every_configuration
    test_config_attn_implementation_setter check_config_arguments_init
common/test_outputs.py::test_the_same_call_gives_the_same
    test_determinism
common/test_outputs.py::test_a_row_in_a_batch_is_the_row_alone
    test_batching_equivalence
common/test_outputs.py::test_a_tuple_holds_what_the_dictionary_holds
    test_model_outputs_equivalence
common/test_outputs.py::test_attentions_and_hidden_states_by_call_and_by_configuration
    test_attention_outputs test_hidden_states_output
common/test_outputs.py::test_some_hidden_states_by_their_indices
    test_can_capture_specific_layers_hidden_states
common/test_outputs.py::test_hidden_states_and_attentions_get_gradients
    test_retain_grad_hidden_states_attentions
common/test_outputs.py::test_the_feed_forward_over_some_tokens_at_a_time
    test_feed_forward_chunking
common/test_outputs.py::test_embeddings_in_place_of_ids
    test_inputs_embeds test_inputs_embeds_matches_input_ids
common/test_outputs.py::test_the_embeddings_can_be_read_and_replaced
    test_model_get_set_embeddings
common/test_outputs.py::test_the_main_input_comes_first
    test_model_main_input_name
common/test_outputs.py::test_a_head_stands_on_a_base_model
    test_model_base_model_prefix
common/test_outputs.py::test_special_tokens_may_be_left_out
    test_model_forward_default_config_values
common/test_outputs.py::test_the_models_here_are_small
    test_model_is_small test_num_layers_is_small
common/test_embeddings.py::test_tokens_are_added_and_removed
    test_resize_tokens_embeddings test_resize_embeddings_untied
common/test_embeddings.py::test_a_resized_output_layer_is_not_initialised_anew
    test_resize_embeddings_untied_no_reinit_on_post_init
common/test_saving.py::test_outputs_survive_saving_twice
    test_save_load test_can_use_safetensors test_load_contiguous_weights
common/test_saving.py::test_a_file_has_each_tensor_once_and_all_of_them
    test_tied_weights_keys test_load_save_without_tied_weights test_save_load_keys_to_ignore_on_save
common/test_saving.py::test_a_file_without_weights_is_told_of_in_full
    test_model_weights_reload_no_missing_tied_weights
common/test_saving.py::test_a_base_model_and_its_head_load_from_each_other
    test_correct_missing_keys test_base_model_prefix_loads_base_weights
common/test_saving.py::test_the_precision_is_what_is_asked_for
    test_bc_torch_dtype test_keep_in_fp32_modules test_keep_in_fp32_modules_exist
common/test_saving.py::test_a_model_is_made_of_a_state_without_any_folder
    test_from_pretrained_no_checkpoint
common/test_saving.py::test_a_state_survives_torchs_own_format
    test_torch_save_load
common/test_saving.py::test_weights_of_other_sizes_are_refused_or_made_anew_when_told_to
    test_load_with_mismatched_shapes
common/test_saving.py::test_a_head_of_other_labels_is_refused_or_made_anew_when_told_to
    test_can_load_ignoring_mismatched_shapes
common/test_saving.py::test_loading_takes_no_device_from_around_it_and_refuses_meta
    test_can_load_with_device_context_manager test_can_load_with_global_device_set
    test_cannot_load_with_meta_device_context_manager
common/test_initialisation.py::test_missing_weights_are_those_of_a_new_model
    test_can_init_all_missing_weights
common/test_initialisation.py::test_a_model_of_the_meta_device_can_be_filled
    test_init_weights_can_init_buffers test_all_tensors_are_parameter_or_buffer
    test_can_be_initialized_on_meta
common/test_training.py::test_every_head_has_a_loss_and_every_parameter_a_gradient
    test_training
common/test_training.py::test_recomputation_gives_the_same_loss_and_gradients
    test_training_gradient_checkpointing test_training_gradient_checkpointing_use_reentrant_false
    test_training_gradient_checkpointing_use_reentrant_true
    test_enable_input_require_grads_with_gradient_checkpointing
common/test_training.py::test_checkpointing_is_switched_on_and_off
    test_gradient_checkpointing_enable_disable test_peft_gradient_checkpointing_enable_disable
common/test_training.py::test_checkpointing_by_the_old_field
    test_gradient_checkpointing_backward_compatibility
common/test_training.py::test_inputs_can_be_made_to_require_gradients
    test_enable_input_require_grads
common/test_training.py::test_labels_that_are_shifted_already_replace_the_others
    test_causal_lm_loss_honors_shift_labels
common/test_training.py::test_problems_of_every_kind
    test_problem_types
common/test_training.py::test_a_text_learnt_by_heart_is_generated
    test_training_overfit
test_packing.py::test_each_text_as_if_alone_with_its_gradients
    test_eager_padding_matches_padding_free_with_position_ids
    test_sdpa_padding_matches_padding_free_with_position_ids
test_decoder_training.py::test_compile_without_a_graph_break
    test_torch_compile_for_training
common/test_generation.py::test_everything_that_can_be_returned
    test_greedy_generate test_greedy_generate_dict_outputs test_greedy_generate_dict_outputs_use_cache
    test_sample_generate test_sample_generate_dict_output test_beam_search_generate
    test_beam_search_generate_dict_output test_beam_search_generate_dict_outputs_use_cache
    test_beam_sample_generate test_beam_sample_generate_dict_output
common/test_generation.py::test_without_a_prompt
    test_generate_without_input_ids
common/test_generation.py::test_tokens_that_another_proposes
    test_assisted_decoding_matches_greedy_search test_assisted_decoding_sample
    test_prompt_lookup_decoding_matches_greedy_search test_prompt_lookup_decoding_stops_at_eos
common/test_generation.py::test_left_padding_of_any_length_changes_nothing
    test_left_padding_compatibility
common/test_generation.py::test_from_embeddings_with_and_without_their_ids
    test_generate_from_inputs_embeds test_generate_from_random_inputs_embeds
common/test_generation.py::test_going_on_in_a_second_call
    test_generate_continue_from_past_key_values test_generate_continue_from_inputs_embeds
common/test_generation.py::test_a_cache_of_fixed_size
    test_generate_with_static_cache
test_static.py::test_generate_in_other_modes
    test_generate_from_inputs_embeds_with_static_cache
test_static.py::test_generate_compiles_the_step_once
    test_generate_compile_model_forward_fullgraph test_generate_compilation_all_outputs
common/test_generation.py::test_logits_of_the_last_tokens_only
    test_forward_with_logits_to_keep test_generate_methods_with_logits_to_keep
common/test_generation.py::test_positions_by_hand_are_those_that_are_counted
    test_generate_with_and_without_position_ids
common/test_generation.py::test_what_the_class_has_of_generation
    test_inherits_generation_mixin test_prepare_inputs_for_generation_kwargs_forwards
    test_generation_tester_mixin_inheritance
common/test_pipelines.py::test_one_text_and_several
    test_pipeline_text_generation test_pipeline_text_generation_fp16 test_pipeline_feature_extraction
    test_pipeline_feature_extraction_fp16 test_pipeline_fill_mask test_pipeline_fill_mask_fp16
    test_pipeline_text_classification test_pipeline_text_classification_fp16
    test_pipeline_token_classification test_pipeline_token_classification_fp16 test_pipeline_zero_shot
    test_pipeline_zero_shot_fp16
common/test_pipelines.py::test_images
    test_pipeline_image_classification test_pipeline_image_classification_fp16
    test_pipeline_image_feature_extraction test_pipeline_image_feature_extraction_fp16
test_heads_with_others.py::test_accelerates_device_maps
    test_disk_offload_safetensors test_cpu_offload
"""

# What is demanded, what there is here and why, the test that holds it, upstream's names.
DIFFERENT = [
    (
        "Several implementations of attention that agree, and `attn_implementation` to choose one",
        'One, called "eager"; other names are refused. What it runs on `syncattn.use_backend` chooses',
        "common/test_outputs.py::test_there_is_one_implementation_of_attention",
        "test_can_set_attention_dynamically test_sdpa_can_dispatch_non_composite_models "
        "test_eager_matches_sdpa_inference test_sdpa_can_dispatch_on_flash test_sdpa_can_compile_dynamic "
        "test_flex_attention_with_grads test_eager_matches_sdpa_generate test_eager_matches_fa2_generate "
        "test_eager_matches_fa3_generate test_eager_matches_fa4_generate "
        "test_flash_attention_2_continue_generate_with_position_ids test_flash_attn_2_fp32_ln "
        "test_flash_attn_kernels_inference_equivalence test_flash_attn_kernels_mps_inference_equivalence "
        "test_flash_attn_2_inference_equivalence test_flash_attn_2_inference_equivalence_right_padding "
        "test_flash_attn_3_inference_equivalence test_flash_attn_3_inference_equivalence_right_padding "
        "test_flash_attn_4_inference_equivalence test_flash_attn_4_inference_equivalence_right_padding "
        "test_flash_attn_2_can_compile_with_attention_mask_None_without_graph_break "
        "test_flash_attn_2_from_config test_flash_attn_3_from_config test_flash_attn_4_from_config "
        "test_kernels_can_load_without_crashing",
    ),
    (
        "A table of positions can be resized",
        "There is none: positions are numbers, and a longer text needs nothing",
        "common/test_outputs.py::test_there_is_no_table_of_positions",
        "test_resize_position_vector_embeddings",
    ),
    (
        "A cache's layers hold keys and values of known shapes",
        "A `DecoderCache` holds frequencies, which are narrower, sums and the last hidden state; its size"
        " and length are as demanded",
        "common/test_generation.py::test_the_cache_of_one_call",
        "test_past_key_values_format",
    ),
    (
        "`generate` with quantized caches",
        "Refused by name: the cache holds the model's own numbers",
        "common/test_generation.py::test_what_is_not_served_is_refused_by_name",
        "test_generate_with_quant_cache",
    ),
    (
        "Texts packed into one row for flash-attention, or by a mask of four axes",
        "They are told apart as for flash-attention, without it; the mask is refused by name: nothing of one "
        "text may reach another, through delay and token shift either",
        "test_packing.py::test_each_text_as_if_alone_with_its_gradients",
        "test_custom_4d_attention_mask "
        "test_flash_attention_2_padding_matches_padding_free_with_position_ids "
        "test_flash_attention_2_padding_matches_padding_free_with_position_ids_and_fa_kwargs "
        "test_flash_attention_3_padding_matches_padding_free_with_position_ids "
        "test_flash_attention_3_padding_matches_padding_free_with_position_ids_and_fa_kwargs "
        "test_flash_attention_4_padding_matches_padding_free_with_position_ids "
        "test_flash_attention_4_padding_matches_padding_free_with_position_ids_and_fa_kwargs",
    ),
    (
        "`torch.export` and ONNX of every class, prefill and decoding apart",
        "By torch's own functions, not transformers' exporters: [exporting](exporting.md) says what is "
        "tested",
        "test_decoder_training.py::test_export",
        "test_torch_export test_torch_export_generate test_onnx_export test_onnx_export_generate "
        "test_executorch_export test_executorch_export_generate",
    ),
]

# Why upstream itself would skip these for our classes: upstream's names.
NOT_ASKED = {
    "Encoder-decoders": ("test_encoder_decoder_loss_no_double_shift"),
    "Configurations within a configuration": (
        "create_and_test_config_from_and_save_pretrained_composite "
        "create_and_test_config_from_pretrained_custom_kwargs test_attn_implementation_composite_models "
        "test_sdpa_can_dispatch_composite_models test_flash_attn_2_can_dispatch_composite_models "
        "test_flash_attn_3_can_dispatch_composite_models test_flash_attn_4_can_dispatch_composite_models "
        "test_internal_model_config_and_subconfig_are_same "
        "test_can_set_attention_dynamically_composite_model"
    ),
    "Mixtures of experts": (
        "test_eager_matches_batched_and_grouped_inference test_moe_models_record_router_logits "
        "test_output_router_logits_from_config test_moe_parallel_plans_shard_experts test_ep_forward "
        "test_ep_backward test_fsdp2_expert_parallel_2d_vs_ddp test_fsdp2_expert_parallel_bf16_grads"
    ),
    "Sliding windows; rotary positions with options (ours have none)": (
        "test_sliding_window_mask test_model_rope_scaling_from_config test_model_rope_scaling_frequencies"
        " test_vision_axial_rope test_model_rope_with_partial_rotation"
    ),
    "Several modalities in one model": (
        "test_get_text_features_output test_get_text_features_hidden_states "
        "test_get_text_features_attentions test_get_image_features_output "
        "test_get_image_features_pooler_output test_get_image_features_hidden_states "
        "test_get_image_features_attentions test_get_audio_features_output "
        "test_get_audio_features_hidden_states test_get_audio_features_attentions "
        "test_get_video_features_output test_get_video_features_pooler_output "
        "test_get_video_features_hidden_states test_get_video_features_attentions"
    ),
    "Pipelines for sound, video, tables, documents, masks and boxes, and two modalities": (
        "test_pipeline_any_to_any test_pipeline_any_to_any_fp16 test_pipeline_audio_classification "
        "test_pipeline_audio_classification_fp16 test_pipeline_automatic_speech_recognition "
        "test_pipeline_automatic_speech_recognition_fp16 test_pipeline_depth_estimation "
        "test_pipeline_depth_estimation_fp16 test_pipeline_document_question_answering "
        "test_pipeline_document_question_answering_fp16 test_pipeline_image_segmentation "
        "test_pipeline_image_segmentation_fp16 test_pipeline_image_text_to_text "
        "test_pipeline_image_text_to_text_fp16 test_pipeline_mask_generation "
        "test_pipeline_mask_generation_fp16 test_pipeline_object_detection "
        "test_pipeline_object_detection_fp16 test_pipeline_table_question_answering "
        "test_pipeline_table_question_answering_fp16 test_pipeline_text_to_audio "
        "test_pipeline_text_to_audio_fp16 test_pipeline_video_classification "
        "test_pipeline_video_classification_fp16 test_pipeline_zero_shot_audio_classification "
        "test_pipeline_zero_shot_audio_classification_fp16 test_pipeline_zero_shot_image_classification "
        "test_pipeline_zero_shot_image_classification_fp16 test_pipeline_zero_shot_object_detection "
        "test_pipeline_zero_shot_object_detection_fp16"
    ),
    "Outputs recorded by hooks (ours returns them)": (
        "test_capture_outputs_decorator test_format_of_can_record_outputs"
    ),
    "Checkpoints under other names than the model's": (
        "test_reverse_loading_mapping test_can_load_from_already_mapped_keys"
    ),
    "Pickled checkpoints: nothing here unpickles": ("test_disk_offload_bin"),
    "Plans for tensor parallelism and FSDP: none is declared; [several GPUs](distributed.md) has what is "
    "tested": (
        "test_tp_plan_matches_params test_tied_head_has_a_tp_plan_entry "
        "test_tp_plan_shards_input_embeddings test_tp_forward test_tp_backward test_tp_generation "
        "test_tp_generation_quantized test_fsdp_plan_declared test_fsdp2_sharding_structure "
        "test_fsdp2_save_load test_fsdp2_bf16_training test_fsdp2_save_load_dcp test_hsdp_save_load "
        "test_hsdp_save_load_dcp test_hsdp_grad_accumulation_vs_single_device test_fsdp2_plan_vs_ddp"
    ),
    "DeepSpeed, or several accelerators": (
        "test_resize_tokens_embeddings_with_deepspeed "
        "test_resize_tokens_embeddings_with_deepspeed_multi_gpu "
        "test_resize_embeddings_untied_with_deepspeed "
        "test_resize_embeddings_untied_with_deepspeed_multi_gpu test_model_parallelism "
        "test_model_parallel_beam_search"
    ),
}


def table() -> str:
    """What docs/models.md says of all this."""
    held = sum(len(names) for names in parsed(HELD).values())
    differ = sum(len(names.split()) for *_, names in DIFFERENT)
    others = sum(len(names.split()) for names in NOT_ASKED.values())
    lines = [
        f"Of {held + differ + others} tests there, {held} ask for what tests here hold too, {differ} for "
        "what differs:",
        "",
        "| what they ask | what there is here, and why |",
        "| --- | --- |",
        *(f"| {demand} | {reason} |" for demand, reason, *_ in DIFFERENT),
        "",
        f"The other {others} are not asked of models like these:",
        "",
        "| of what | tests |",
        "| --- | --- |",
        *(f"| {reason} | {len(names.split())} |" for reason, names in NOT_ASKED.items()),
    ]
    return "\n".join(lines)


def parsed(text: str) -> dict[str, list[str]]:
    """A text of lines, and of lines under them that are indented: these lines' words by the line above."""
    found: dict[str, list[str]] = {}
    for line in text.strip().splitlines():
        if line.startswith(" "):
            found[[*found][-1]] += line.split()
        else:
            found[line] = []
    return found


@cache
def functions(path: str) -> set[str]:
    """The names of the functions of a file under tests/models."""
    tree = ast.parse((MODELS / path).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_demand_is_held_where_it_says():
    for where in [*parsed(HELD), *(where for *_, where, _ in DIFFERENT)]:
        path, _, name = where.partition("::")
        assert name in functions(path), where


def test_no_demand_is_named_twice():
    groups = [" ".join(names) for names in parsed(HELD).values()]
    groups += [names for *_, names in DIFFERENT] + [*NOT_ASKED.values()]
    every = [name for names in groups for name in names.split()]
    assert len(every) == len(set(every)), {name for name in every if every.count(name) > 1}


def test_the_page_says_what_these_tables_say():
    assert table() in DOCUMENT.read_text(encoding="utf-8"), f"docs/models.md should have:\n\n{table()}"


if __name__ == "__main__":
    print(table())
