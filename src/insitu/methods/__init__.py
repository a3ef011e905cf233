"""The field's techniques, each a short function of a model, data and a metric.

from insitu import LanguageModel, methods

model = LanguageModel("demo")
methods.logit_lens(model, "The Eiffel Tower is in the city of", target=" Paris").plot()

Every one gives a `Result`: numbers with named axes, `.sel()`, `.max()`, `.plot()`, `.to_frame()`.
"""

# Not one by one when asked for: a file that is imported later than its function was named would
# take the function's place here, for both have one name. All of them together need torch alone.
from insitu.methods.ablation import ablation
from insitu.methods.activation_patching import activation_patching
from insitu.methods.attention_patterns import attention_patterns
from insitu.methods.attribution_patching import attribution_patching
from insitu.methods.axes import Axis
from insitu.methods.causal_tracing import causal_tracing
from insitu.methods.direct_logit_attribution import direct_logit_attribution
from insitu.methods.induction import induction_scores
from insitu.methods.integrated_gradients import integrated_gradients
from insitu.methods.interchange import interchange
from insitu.methods.logit_lens import logit_lens
from insitu.methods.metrics import logit_difference, logprob, probability
from insitu.methods.path_patching import path_patching
from insitu.methods.probes import linear_probes
from insitu.methods.result import Result
from insitu.methods.sae import activations_of, insert_sae, loss_recovered
from insitu.methods.sae_features import sae_features
from insitu.methods.sparse_autoencoder import SparseAutoencoder
from insitu.methods.steering import steer, steering_vectors
from insitu.methods.steering_sweep import steering_sweep
from insitu.methods.train_tuned_lens import train_tuned_lens
from insitu.methods.tuned_lens import TunedLens

__all__ = [
    "Axis",
    "Result",
    "SparseAutoencoder",
    "TunedLens",
    "ablation",
    "activation_patching",
    "activations_of",
    "attention_patterns",
    "attribution_patching",
    "causal_tracing",
    "direct_logit_attribution",
    "induction_scores",
    "insert_sae",
    "integrated_gradients",
    "interchange",
    "linear_probes",
    "logit_difference",
    "logit_lens",
    "logprob",
    "loss_recovered",
    "path_patching",
    "probability",
    "sae_features",
    "steer",
    "steering_sweep",
    "steering_vectors",
    "train_tuned_lens",
]
