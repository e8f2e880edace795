"""Models in the conventions of transformers: Oscillatory Synchronization Networks and softmax Transformers.

Importing this registers them: `AutoConfig`, `AutoModel` and the Auto classes of their heads then load them.
"""

try:
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForImageClassification,
        AutoModelForTimeSeriesPrediction,
    )
except ImportError as error:
    raise ImportError("syncattn.models needs transformers: install syncattn with its 'hf' extra") from error

from syncattn.models.cache import DecoderCache
from syncattn.models.configuration import DecoderConfig
from syncattn.models.images import OSNForImageClassification, OSNImageConfig, OSNImageModel
from syncattn.models.osn import OSNConfig, OSNForCausalLM, OSNModel, OSNPreTrainedModel
from syncattn.models.parameters import count_parameters, fit_parameters, match_parameters
from syncattn.models.series import (
    OSNForTimeSeriesPrediction,
    OSNSeriesConfig,
    OSNSeriesModel,
    SeriesModelOutput,
    TimeSeriesPredictionOutput,
)
from syncattn.models.softmax import SoftmaxAttention
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
    "OSNForTimeSeriesPrediction",
    "OSNImageConfig",
    "OSNImageModel",
    "OSNModel",
    "OSNPreTrainedModel",
    "OSNSeriesConfig",
    "OSNSeriesModel",
    "SeriesModelOutput",
    "SoftmaxAttention",
    "TimeSeriesPredictionOutput",
    "TransformerConfig",
    "TransformerForCausalLM",
    "TransformerModel",
    "TransformerPreTrainedModel",
    "count_parameters",
    "fit_parameters",
    "match_parameters",
]

AutoConfig.register(OSNConfig.model_type, OSNConfig, exist_ok=True)
AutoConfig.register(TransformerConfig.model_type, TransformerConfig, exist_ok=True)
AutoModel.register(OSNConfig, OSNModel, exist_ok=True)
AutoModel.register(TransformerConfig, TransformerModel, exist_ok=True)
AutoModelForCausalLM.register(OSNConfig, OSNForCausalLM, exist_ok=True)
AutoModelForCausalLM.register(TransformerConfig, TransformerForCausalLM, exist_ok=True)
for _config, _base, _auto, _head in (
    (OSNImageConfig, OSNImageModel, AutoModelForImageClassification, OSNForImageClassification),
    (OSNSeriesConfig, OSNSeriesModel, AutoModelForTimeSeriesPrediction, OSNForTimeSeriesPrediction),
):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModel.register(_config, _base, exist_ok=True)
    _auto.register(_config, _head, exist_ok=True)
