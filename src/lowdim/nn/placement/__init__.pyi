from lowdim.nn.placement.base import Placement as Placement
from lowdim.nn.placement.lns import LayerNormScaling as LayerNormScaling
from lowdim.nn.placement.mix_ln import MixLN as MixLN
from lowdim.nn.placement.pre_ln import PreLN as PreLN
