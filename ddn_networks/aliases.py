"""Names of earlier revisions: they work, with a DeprecationWarning that gives the new one."""

import functools
import importlib
import operator
import warnings
from collections.abc import Callable
from typing import Any

RENAMED = {
    # modules, with all names in them
    'ddn_networks.base': 'ddn_networks.network',
    'ddn_networks.conditional_balance': 'ddn_networks.prefix_balance',
    'ddn_networks.guided': 'ddn_networks.guided_sampling',
    'ddn_networks.prefixes': 'ddn_networks.shared_prefixes',
    # classes and functions; the first is in old snapshots
    'ddn_networks.network.DDN': 'ddn_networks.single_shot.DDN',
    'ddn_networks.NoBalancing': 'ddn_networks.UsageCounter',
    'ddn_networks.ConditionalBalancing': 'ddn_networks.PrefixBalancing',
    'ddn_networks.balance.NoBalancing': 'ddn_networks.balance.UsageCounter',
    'ddn_networks.candidates.cheapest_method': 'ddn_networks.closed_forms.cheapest_method',
    'ddn_networks.candidates.costs': 'ddn_networks.closed_forms.costs',
    'ddn_networks.conditional_balance.ConditionalBalancing': 'ddn_networks.prefix_balance.PrefixBalancing',
    'ddn_networks.conditions.Chance': 'ddn_networks.conditions.ConditionDraw',
    'ddn_networks.conditions.Images': 'ddn_networks.condition_set.Images',
    'ddn_networks.conditions.Part': 'ddn_networks.conditions.Condition',
    'ddn_networks.conditions.sobel': 'ddn_networks.pixel_maps.sobel',
    'ddn_networks.guided.Chance': 'ddn_networks.guided_sampling.Randomness',
    'torch_utils.persistence.ALLOWED_CLASSES': 'ddn_networks.snapshots.ALLOWED_CLASSES',
    'torch_utils.persistence.PRETRAINED': 'ddn_networks.snapshots.PRETRAINED',
    'torch_utils.persistence.init_spec': 'ddn_networks.snapshots.init_spec',
    'torch_utils.persistence.load_tensors': 'ddn_networks.tensor_files.load_tensors',
    'torch_utils.persistence.persistent_class': 'ddn_networks.snapshots.persistent_class',
    'torch_utils.persistence.rebuild': 'ddn_networks.snapshots.rebuild',
    'torch_utils.persistence.save_network': 'ddn_networks.snapshots.save_network',
    'torch_utils.persistence.save_tensors': 'ddn_networks.tensor_files.save_tensors',
}

# Functions that are methods or attributes today: ``former_conditions`` has them as they were.
FORMER = {
    'ddn_networks.conditions.CLASSES': 'ddn_networks.conditions.CONDITIONS',
    'ddn_networks.conditions.DRAWN': 'ddn_networks.conditions.Edge.ready',
    'ddn_networks.conditions.NEEDS_SIZE': 'ddn_networks.conditions.CONDITIONS',
    'ddn_networks.conditions.OF_THE_IMAGE': 'ddn_networks.conditions.CONDITIONS',
    'ddn_networks.conditions.as_picture': 'ddn_networks.condition_set.ConditionSet.look',
    'ddn_networks.conditions.check_labels': 'ddn_networks.conditions.Class.check',
    'ddn_networks.conditions.classes_alone': 'ddn_networks.condition_set.ConditionSet.num_classes',
    'ddn_networks.conditions.draw': 'ddn_networks.condition_set.ConditionSet.draw',
    'ddn_networks.conditions.listed': 'ddn_networks.condition_set.ConditionSet.__str__',
    'ddn_networks.conditions.make': 'ddn_networks.condition_set.ConditionSet.make',
    'ddn_networks.conditions.needs_images': 'ddn_networks.condition_set.ConditionSet.pictures',
    'ddn_networks.conditions.needs_labels': 'ddn_networks.condition_set.ConditionSet.labels',
}


def old_names(module: str) -> Callable[[str], Any]:
    """``__getattr__`` for a module that has, or had, names of the table. A module that is itself one warns at once."""
    if module in RENAMED:
        warnings.warn(f'{module} is now {RENAMED[module]}', DeprecationWarning, stacklevel=3)

    def __getattr__(name: str) -> Any:
        old, new = f'{module}.{name}', RENAMED.get(f'{module}.{name}') or FORMER.get(f'{module}.{name}')
        if new is None and module in RENAMED and not name.startswith('__'):
            new = f'{RENAMED[module]}.{name}'
        if new is None:
            raise AttributeError(f'module {module!r} has no attribute {name!r}')
        home, _, attribute = new.rpartition('.') if old not in FORMER else ('ddn_networks.former_conditions', '', name)
        value = getattr(importlib.import_module(home), attribute)
        warnings.warn(f'{old} is now {new}', DeprecationWarning, stacklevel=2)
        return value

    return __getattr__


def old_arguments(**renamed: str) -> Callable[[Callable], Callable]:
    """Decorator: keyword arguments ``old='new'`` of earlier revisions work, with a DeprecationWarning."""

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def call(*args, **kwargs):
            for old in renamed.keys() & kwargs.keys():
                new = renamed[old]
                if new in kwargs:
                    raise TypeError(f'{function.__qualname__}: {old} is now {new}: give one of them')
                message = f'{function.__qualname__}: the argument {old} is now {new}'
                warnings.warn(message, DeprecationWarning, stacklevel=2)
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return call

    return decorate


class OldAttribute:
    """An attribute of an earlier revision: the value of ``new``, with a DeprecationWarning.

    One without ``new`` was a switch for speed alone, which is an argument now: it is False, and setting it only warns.
    """

    def __init__(self, name: str, new: str | None = None):
        self.new = new
        self.message = f'{name} is now {new or "an argument of the methods"}'

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        warnings.warn(f'{owner.__name__}.{self.message}', DeprecationWarning, stacklevel=2)
        return operator.attrgetter(self.new)(instance) if self.new else False

    def __set__(self, instance: Any, value: Any) -> None:
        warnings.warn(f'{type(instance).__name__}.{self.message}', DeprecationWarning, stacklevel=3)
