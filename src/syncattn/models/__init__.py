"""Models in the conventions of transformers: Oscillatory Synchronization Networks and softmax Transformers.

Importing this registers them: `AutoConfig`, `AutoModel` and each `AutoModelFor...` that there is a head for
then load both kinds.
"""

try:
    import transformers
except ImportError as error:
    raise ImportError("syncattn.models needs transformers: install syncattn with its 'hf' extra") from error

from syncattn.models.cache import DecoderCache
from syncattn.models.configuration import DecoderConfig
from syncattn.models.decoder import DecoderPreTrainedModel
from syncattn.models.heads import (
    OSNForMaskedLM,
    OSNForQuestionAnswering,
    OSNForSequenceClassification,
    OSNForTokenClassification,
    TransformerForMaskedLM,
    TransformerForQuestionAnswering,
    TransformerForSequenceClassification,
    TransformerForTokenClassification,
)
from syncattn.models.images import OSNForImageClassification, OSNImageConfig, OSNImageModel
from syncattn.models.osn import OSNConfig, OSNForCausalLM, OSNModel, OSNPreTrainedModel
from syncattn.models.parameters import count_parameters, fit_parameters, match_parameters
from syncattn.models.pooling import last_pooling, mean_pooling, sentence_embeddings
from syncattn.models.series import (
    OSNForTimeSeriesPrediction,
    OSNSeriesConfig,
    OSNSeriesModel,
    SeriesModelOutput,
    TimeSeriesPredictionOutput,
)
from syncattn.models.softmax import SoftmaxAttention
from syncattn.models.static import StaticDecoderCache
from syncattn.models.transformer import (
    TransformerConfig,
    TransformerForCausalLM,
    TransformerModel,
    TransformerPreTrainedModel,
)

__all__ = [
    "DecoderCache",
    "DecoderConfig",
    "OSNConfig",
    "OSNForCausalLM",
    "OSNForImageClassification",
    "OSNForMaskedLM",
    "OSNForQuestionAnswering",
    "OSNForSequenceClassification",
    "OSNForTimeSeriesPrediction",
    "OSNForTokenClassification",
    "OSNImageConfig",
    "OSNImageModel",
    "OSNModel",
    "OSNPreTrainedModel",
    "OSNSeriesConfig",
    "OSNSeriesModel",
    "SeriesModelOutput",
    "SoftmaxAttention",
    "StaticDecoderCache",
    "TimeSeriesPredictionOutput",
    "TransformerConfig",
    "TransformerForCausalLM",
    "TransformerForMaskedLM",
    "TransformerForQuestionAnswering",
    "TransformerForSequenceClassification",
    "TransformerForTokenClassification",
    "TransformerModel",
    "TransformerPreTrainedModel",
    "count_parameters",
    "fit_parameters",
    "last_pooling",
    "match_parameters",
    "mean_pooling",
    "sentence_embeddings",
]


def _register(config: type[DecoderConfig], base: type[DecoderPreTrainedModel], *heads: type) -> None:
    """Let the Auto classes load models of a kind: each head by the one that its name ends like."""
    transformers.AutoConfig.register(config.model_type, config, exist_ok=True)
    transformers.AutoModel.register(config, base, exist_ok=True)
    if base.main_input_name == "input_ids":
        transformers.AutoModelForTextEncoding.register(config, base, exist_ok=True)
    for head in heads:
        auto = getattr(transformers, "AutoModel" + head.__name__[head.__name__.index("For") :])
        auto.register(config, head, exist_ok=True)


_register(
    OSNConfig,
    OSNModel,
    OSNForCausalLM,
    OSNForMaskedLM,
    OSNForSequenceClassification,
    OSNForTokenClassification,
    OSNForQuestionAnswering,
)
_register(
    TransformerConfig,
    TransformerModel,
    TransformerForCausalLM,
    TransformerForMaskedLM,
    TransformerForSequenceClassification,
    TransformerForTokenClassification,
    TransformerForQuestionAnswering,
)
_register(OSNImageConfig, OSNImageModel, OSNForImageClassification)
_register(OSNSeriesConfig, OSNSeriesModel, OSNForTimeSeriesPrediction)
