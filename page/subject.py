"""What the page shows: one network, and what was given with it.

Legend: L layers, D codes of a latent, N codes of a file.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

from cli import guide_networks
from cli.guide_arguments import SCRIPT, split
from cli.guide_options import Options
from ddn_networks import Network, black_boxes
from ddn_networks.guides import Guide


class Classifier:
    """A TorchScript classifier, given as for ``--guide=classifier:`` of generate.py but without a class.

    Attributes: names of its classes, which are numbers.
    Raises ValueError where it cannot be read, or does not classify pictures of the network.
    """

    def __init__(self, text: str, net: Network):
        path, options = split(text, list(SCRIPT))
        self._fn = guide_networks.torchscript(path, Options(options), net.device)
        self._at_once = Options(options).at_once()
        try:
            with torch.no_grad():
                logits = self._fn(torch.zeros(1, net.img_channels, *net.img_resolution, device=net.device))
        except RuntimeError as error:
            raise ValueError(f'--classifier={text}: it does not take pictures of this network') from error
        if logits.ndim != 2 or logits.shape[1] < 2:
            raise ValueError(f'--classifier={text}: it gives {list(logits.shape)}, not logits [B, classes]')
        self.names = [str(i) for i in range(logits.shape[1])]

    def guide(self, index: int) -> Guide:
        """The guide of a class."""
        return black_boxes.classifier(self._fn, index, **self._at_once)


def text_guides(text: str, net: Network) -> Callable[[str], Guide]:
    """text -> its guide, by a model of open_clip: 'ViT-B-32,pretrained=openai'. ValueError where it does not load."""
    model, options = split(text, ['pretrained'])
    pretrained = options.get('pretrained', 'openai')
    found = guide_networks.clip_model(model, None if pretrained == 'none' else pretrained, net.device)
    return lambda words: guide_networks.clip_guide(words, *found)


class Subject(NamedTuple):
    """A network and what goes with it.

    name: of the network, without its folder.
    table: codes [N, D] of a file to find neighbours in, or None.
    classifier, clip: what guides by classes and by texts, or None.
    """

    net: Network
    name: str
    table: torch.Tensor | None = None
    classifier: Classifier | None = None
    clip: Callable[[str], Guide] | None = None

    @property
    def num_classes(self) -> int:
        """Classes that the network can be asked for; 0 for none."""
        labels = self.net.conditions.labels
        return labels.size if labels is not None and labels.takes == 'class' else 0

    @property
    def has_finisher(self) -> bool:
        return self.net.finisher is not None

    def condition(self, label: str | None) -> torch.Tensor | None:
        """The condition of a class by its name, a number; 'any' for none."""
        if not self.num_classes:
            return None
        return self.net.make_condition(None if label in (None, 'any') else int(label))

    @property
    def classes(self) -> list[str]:
        """Names of the classes, with 'any' first where the network also works without."""
        names = [str(i) for i in range(self.num_classes)]
        return ['any', *names] if self.net.condition_optional else names


def checked(net: Network) -> Network:
    """The network, for the page; ValueError where it needs a condition that the page cannot ask for."""
    needs = [part.name for part in net.conditions if part.takes != 'class']
    if (needs or net.condition_channels and not net.conditions) and not net.condition_optional:
        raise ValueError(
            f'the page asks for classes only, and this network needs {" and ".join(needs) or "a condition"}: use '
            'generate.py'
        )
    return net
