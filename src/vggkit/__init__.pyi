from vggkit.data.preprocessing import Preprocessing as Preprocessing
from vggkit.data.sources import ImageSource as ImageSource
from vggkit.data.sources import open_data as open_data
from vggkit.design.architecture import Architecture as Architecture
from vggkit.design.baselines import Baseline as Baseline
from vggkit.design.layers import Block as Block
from vggkit.design.memory import (
    TrainingMemory as TrainingMemory,
)
from vggkit.design.memory import (
    largest_batch as largest_batch,
)
from vggkit.design.memory import (
    training_memory as training_memory,
)
from vggkit.design.network import as_network as as_network
from vggkit.design.network import costs as costs
from vggkit.design.network import draw as draw
from vggkit.design.scaling import StepPrediction as StepPrediction
from vggkit.design.scaling import predict_step as predict_step
from vggkit.engines.accelerate import accelerate as accelerate
from vggkit.engines.accelerate import describe_engine as describe_engine
from vggkit.errors import ArchitectureError as ArchitectureError
from vggkit.inference.evaluate import evaluate as evaluate
from vggkit.inference.evaluation import Evaluation as Evaluation
from vggkit.inference.explain import Explanation as Explanation
from vggkit.inference.explain import explain as explain
from vggkit.inference.export import export as export
from vggkit.inference.features import features as features
from vggkit.inference.perceptual import LPIPS as LPIPS
from vggkit.inference.perceptual import PerceptualLoss as PerceptualLoss
from vggkit.inference.predict import Classifier as Classifier
from vggkit.inference.predict import load_classifier as load_classifier
from vggkit.inference.predict import predict as predict
from vggkit.inference.style import dream as dream
from vggkit.inference.style import stylize as stylize
from vggkit.lab.doctor import Diagnosis as Diagnosis
from vggkit.lab.doctor import examine as examine
from vggkit.networks.baselines import alexnet as alexnet
from vggkit.networks.baselines import build as build
from vggkit.networks.baselines import lenet as lenet
from vggkit.networks.modules import init_weights as init_weights
from vggkit.networks.vgg import VGG as VGG
from vggkit.networks.vgg import vgg as vgg
from vggkit.networks.vgg import vgg_block as vgg_block
from vggkit.training.loop import train as train
from vggkit.training.recipe import Recipe as Recipe
from vggkit.training.run import Run as Run
from vggkit.version import __version__ as __version__
from vggkit.weights.files import load_weights as load_weights
from vggkit.weights.files import save_weights as save_weights
from vggkit.weights.surgery import (
    fold_preprocessing as fold_preprocessing,
)
from vggkit.weights.surgery import (
    with_common_scale as with_common_scale,
)
from vggkit.weights.surgery import (
    with_head as with_head,
)
from vggkit.weights.surgery import (
    with_image_size as with_image_size,
)
from vggkit.weights.surgery import (
    with_in_channels as with_in_channels,
)
from vggkit.weights.warm_start import warm_start as warm_start
