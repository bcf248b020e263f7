"""Discrete Distribution Networks: the model, the samplers, Split-and-Prune. Tensors in, tensors out.

    net = ddn_networks.DDN.from_pretrained('network-snapshot.safetensors')
    images, codes = net.sample(16, seed=0)
    images = net.decode(net.encode(images))
"""

from ddn_networks.aliases import old_names
from ddn_networks.balance import LossFreeBalancing, UsageCounter
from ddn_networks.candidates import Candidates
from ddn_networks.network import Network
from ddn_networks.pictures import show
from ddn_networks.prefix_balance import PrefixBalancing
from ddn_networks.published import from_published, published_config
from ddn_networks.recurrent import RecurrentDDN
from ddn_networks.samplers import Choice
from ddn_networks.single_shot import DDN
from ddn_networks.split_prune import SplitAndPrune

__all__ = [
    'DDN',
    'Candidates',
    'Choice',
    'PrefixBalancing',
    'LossFreeBalancing',
    'Network',
    'UsageCounter',
    'RecurrentDDN',
    'SplitAndPrune',
    'from_published',
    'published_config',
    'show',
]

__getattr__ = old_names(__name__)
