from lowdim import train as train
from lowdim.core.errors import LowdimError as LowdimError
from lowdim.core.masks import Masks as Masks
from lowdim.core.native import runtime_info as runtime_info
from lowdim.evaluate.diagnose.api import diagnose as diagnose
from lowdim.evaluate.quality.perplexity import perplexity as perplexity
from lowdim.infer.sparse.accelerate import accelerate as accelerate
from lowdim.infer.sparse.linear import SparseLinear as SparseLinear
from lowdim.infer.sparse.load import load as load
from lowdim.pipeline.compose.api import compose as compose
from lowdim.pipeline.compose.recipe import Composition as Composition
from lowdim.pipeline.recover.api import recover as recover
from lowdim.pipeline.recover.recipe import Recovery as Recovery
from lowdim.prune.api import plan as plan
from lowdim.prune.api import prune as prune
from lowdim.prune.recipe import Recipe as Recipe
from lowdim.train.draft.api import distill_draft as distill_draft
from lowdim.train.draft.recipe import Drafting as Drafting
from lowdim.train.finetune.api import finetune as finetune
from lowdim.train.finetune.recipe import Finetuning as Finetuning
from lowdim.train.pretrain.api import pretrain as pretrain
from lowdim.train.pretrain.recipe import Pretraining as Pretraining
from lowdim.train.selection.api import rank as rank

__version__: str
