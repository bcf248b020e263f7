"""Names of revision 002c5b3 still work, with a warning that gives the new one; our own code uses the new ones."""

import importlib
import os
import pkgutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import ddn_networks
from ddn_networks import aliases, conditions, ddl, samplers
from ddn_networks.samplers import given

ROOT = Path(__file__).resolve().parents[1]
ALL = [
    'Candidates', 'Choice', 'ConditionalBalancing', 'DDN', 'LossFreeBalancing', 'Network', 'NoBalancing',
    'RecurrentDDN', 'SplitAndPrune', 'from_published', 'published_config',
]  # fmt: skip
MODULES = {
    'ddn_networks': ALL,
    'ddn_networks.balance': ['LossFreeBalancing', 'NoBalancing'],
    'ddn_networks.base': ['LayerSpec', 'Network', 'Output', 'resolution_pair', 'scale_sizes'],
    'ddn_networks.black_boxes': ['classifier', 'clip', 'perceptual', 'python', 'style'],
    'ddn_networks.blocks': ['ResBlock', 'num_groups'],
    'ddn_networks.candidates': ['Candidates', 'area_resize', 'cheapest_method', 'costs'],
    'ddn_networks.codes': ['common_prefix', 'groups', 'hamming', 'nearest', 'path', 'swap', 'to_bits', 'under', 'vote'],
    'ddn_networks.conditional_balance': ['ConditionalBalancing'],
    'ddn_networks.conditions': [
        'CLASSES', 'Chance', 'DRAWN', 'Images', 'LABELS', 'Labels', 'NEEDS_SIZE', 'OF_THE_IMAGE', 'PLAIN', 'Part',
        'as_picture', 'check_labels', 'classes_alone', 'draw', 'listed', 'make', 'needs_images', 'needs_labels',
        'parse', 'sobel',
    ],
    'ddn_networks.ddl': ['DDL', 'Selection'],
    'ddn_networks.guided': ['Chance', 'Guidance', 'sample'],
    'ddn_networks.guides': ['Guide', 'blur', 'colorization', 'denoise', 'edges', 'inpaint', 'l1', 'l2', 'superres'],
    'ddn_networks.network': ['DDN'],
    'ddn_networks.pixel_maps': ['box', 'fit', 'gaussian_blur', 'soft_edges', 'to_channels', 'upsample'],
    'ddn_networks.prefixes': ['Sharing', 'split', 'start'],
    'ddn_networks.published': ['from_published', 'published_config'],
    'ddn_networks.recurrent': ['RecurrentDDN', 'UNet'],
    'ddn_networks.samplers': ['Choice', 'chain_dropout', 'given', 'nearest', 'target_pyramid', 'uniform_codes'],
    'ddn_networks.split_prune': ['Plan', 'SplitAndPrune', 'make_plan'],
    'torch_utils.persistence': [
        'ALLOWED_CLASSES', 'PRETRAINED', 'init_spec', 'load_network', 'load_tensors', 'network_path',
        'persistent_class', 'rebuild', 'save_network', 'save_tensors',
    ],
}  # fmt: skip


@pytest.mark.parametrize('module', MODULES)
def test_names_of_an_earlier_revision(module):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        found = {name: getattr(importlib.import_module(module), name) for name in MODULES[module]}
    said = {str(w.message) for w in caught if w.category is DeprecationWarning}
    for name, value in found.items():
        assert value is not None
        if (former := aliases.FORMER.get(f'{module}.{name}')) is not None:
            assert f'{module}.{name} is now {former}' in said
        new = aliases.RENAMED.get(f'{module}.{name}')
        if new is None and module in aliases.RENAMED:
            new = f'{aliases.RENAMED[module]}.{name}'
        if new is not None:
            assert f'{module}.{name} is now {new}' in said
            home, _, attribute = new.rpartition('.')
            assert getattr(importlib.import_module(home), attribute) is value


STATEMENTS = """
import ddn_networks.guided, ddn_networks.base, ddn_networks.conditional_balance, ddn_networks.prefixes
from ddn_networks.guided import Guidance
from ddn_networks import NoBalancing, ConditionalBalancing, base
from ddn_networks.network import DDN
from ddn_networks.base import Network
"""
TRUE = """
assert issubclass(DDN, Network) and Network is base.Network
assert issubclass(ConditionalBalancing, NoBalancing)
assert ddn_networks.guided.Guidance is Guidance
"""


def test_statements_of_an_earlier_revision(tmp_path):
    """Each warns at the line that is to be mended."""
    (tmp_path / 'old.py').write_text(STATEMENTS + TRUE)
    args = [sys.executable, '-W', 'always::DeprecationWarning', tmp_path / 'old.py']
    done = subprocess.run(args, env={**os.environ, 'PYTHONPATH': str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for number, line in enumerate(STATEMENTS.splitlines(), 1):
        assert not line or f'old.py:{number}: DeprecationWarning: ddn_networks.' in done.stderr, line


@pytest.mark.filterwarnings('ignore:ddn_networks')
def test_functions_of_conditions_do_what_they_did():
    from ddn_networks import condition_set, conditions
    from ddn_networks.conditions import as_picture, check_labels, classes_alone, draw, listed, make, needs_images

    parts = conditions.parse(['color', 'class:10'], 3)
    today = condition_set.ConditionSet(['color', 'class:10'], 3)
    assert [(part.name, part.kind, part.size, part.channels) for part in parts] == [
        ('color', 'color', 0, 1), ('class:10', 'class', 10, 2)
    ]  # fmt: skip
    rows = [f(2, 0.5, torch.Generator().manual_seed(0)) for f in (draw, today.draw)]
    assert torch.equal(*rows) and rows[0].shape == (2, 9)
    images = torch.rand(2, 3, 4, 6)
    made = make(parts, 3, (4, 6), [1, 7], images, rows[0])
    assert torch.equal(made, today.make((4, 6), [1, 7], images, rows[0]))
    assert torch.equal(as_picture(parts, made, 3), made[:, :1].expand(-1, 3, -1, -1))
    assert listed(parts) == 'color and class:10' and needs_images(parts) and not needs_images(parts[1:])
    assert conditions.needs_labels(parts) and not conditions.needs_labels(parts[:1])
    assert (classes_alone(parts), classes_alone(parts[1:])) == (None, 10)
    assert check_labels(parts[1], 3).tolist() == [3]


def test_attributes_of_an_earlier_revision():
    net = ddn_networks.DDN(4, 1, [8], [2], [3])
    selection = next(net.walk(given(torch.zeros(1, 2, dtype=torch.int64)), 1))
    for thing, name, value in (
        (net, 'layer_weights', net.ddl_of_layer),
        (net, 'share_prefixes', False),
        (net, 'grad_checkpoint', False),
        (ddn_networks.UsageCounter(net.node_weights), 'layer_weights', [0, 1]),
        (ddn_networks.UsageCounter(net.node_weights), 'uses', [0, 1]),
        (selection, 'told', selection.next_input),
    ):
        with pytest.warns(DeprecationWarning, match=rf'{type(thing).__name__}\.{name} is now'):
            assert getattr(thing, name) is value if name == 'told' else getattr(thing, name) == value
    with pytest.warns(DeprecationWarning, match='DDN.share_prefixes is now an argument'):
        net.share_prefixes = True
    with pytest.warns(DeprecationWarning, match='DDN.set_conditions_ is now conditions'):
        net.set_conditions_(2, [], True)
    assert net.condition_channels == 2 and net.condition_optional


def _balancer(name: str):
    return lambda **argument: getattr(ddn_networks, name)([torch.ones(3, 1, 2)], **argument).ddl_of_layer


def _made(**argument):
    net = ddn_networks.DDN(4, 3, [8], [1], [3], conditions=['color'])
    return net.make_condition(images=torch.linspace(-1, 1, 96).view(2, 3, 4, 4), **argument)


def _asked(**argument):
    layer = ddl.DDL(8, 3, 1)
    x, codes = torch.ones(1, 8, 2, 2), torch.zeros(1, 1, dtype=torch.int64)
    return layer(x, None, given(codes), 0, **argument).next_input.shape


def _dropped(**argument):
    net = ddn_networks.DDN(4, 1, [8], [2], [3])
    sampler = samplers.chain_dropout(given(torch.zeros(1, 2, dtype=torch.int64)), **argument)
    return net(sampler, 1).codes


# Keyword arguments of revision 002c5b3 with other names today: function, old name, new name, value, a call.
ARGUMENTS = [
    *((f'{name}.__init__', 'layer_weights', 'ddl_of_layer', [0, 0], _balancer(name))
      for name in ('UsageCounter', 'LossFreeBalancing', 'SplitAndPrune', 'PrefixBalancing')),
    ('Network.make_condition', 'chance', 'draws', torch.linspace(0, 1, 18).view(2, 9), _made),
    ('DDL.forward', 'tell', 'next_input', True, _asked),
    ('chain_dropout', 'codes', 'by_chance', torch.tensor([[-1, 2]]), _dropped),
    ('parse', 'names', 'name', 'color', lambda **argument: conditions.parse(img_channels=3, **argument).channels),
]  # fmt: skip


@pytest.mark.parametrize('function, old, new, value, call', ARGUMENTS, ids=[case[0] for case in ARGUMENTS])
def test_arguments_of_an_earlier_revision(function, old, new, value, call):
    with pytest.warns(DeprecationWarning, match=rf'^{function}: the argument {old} is now {new}$') as caught:
        found = call(**{old: value})
    assert caught[0].filename == __file__ or function == 'DDL.forward'  # which torch calls
    expected = call(**{new: value})
    assert torch.equal(found, expected) if isinstance(found, torch.Tensor) else found == expected
    with pytest.raises(TypeError, match=f'{old} is now {new}: give one of them'):
        call(**{old: value, new: value})


def test_every_alias_has_a_target_and_is_listed():
    for old, new in (aliases.RENAMED | aliases.FORMER).items():
        assert pkgutil.resolve_name(new) is not None
        module, _, name = old.rpartition('.')
        assert old in MODULES or name in MODULES[module], f'{old} is not in this test'


def test_what_never_was_is_an_attribute_error():
    for module, name in ((ddn_networks, 'Nothing'), (importlib.import_module('torch_utils.persistence'), 'nothing')):
        with pytest.raises(AttributeError, match=f'module {module.__name__!r} has no attribute {name!r}'):
            getattr(module, name)
