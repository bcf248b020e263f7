"""The folder of a network that the Hugging Face Hub shows: snapshot, description, model card, sheet of samples."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddn_networks import hub, pictures, sampling, snapshots
from ddn_networks.tensor_files import new_file

if TYPE_CHECKING:
    from ddn_networks.network import Network

CONFIG, CARD, SHEET = 'config.json', 'README.md', 'samples.png'
NUM_SAMPLES = 32
_DESCRIBED = ('class_name', 'kwargs', 'emas', 'sampling')  # what a snapshot's header says of the network itself


def save(
    net: 'Network',
    folder: str | os.PathLike,
    trained_on: str | None = None,
    figures: Mapping[str, Any] | None = None,
    license: str | None = None,
    repo: str | None = None,
) -> None:
    """Write the folder: see ``Network.save_pretrained``. ``repo``: where it will be on the Hub, owner/name."""
    folder, meta = Path(folder), getattr(net, 'snapshot_meta', {})
    facts = {key: value for key, value in meta.items() if key not in _DESCRIBED}
    snapshots.save_network(folder / hub.WEIGHTS, net, meta=facts)
    has_sheet = not net.conditions or net.condition_optional
    if has_sheet:
        pictures.show(net.sample(NUM_SAMPLES)).save(folder / SHEET)
    config = {'library': 'ddn-networks', **snapshots.init_spec(net), 'sampling': sampling.to_json(net.sampling)}
    about = trained_on or meta.get('dataset') or 'not given'
    card = _card(net, repo, about, figures or {}, license, has_sheet)
    for name, text in ((CONFIG, json.dumps(config, indent=2)), (CARD, card)):
        with new_file(folder / name) as f:
            f.write(text.encode())


def _card(
    net: 'Network', repo: str | None, trained_on: str, figures: Mapping[str, Any], license: str | None, has_sheet: bool
) -> str:
    """The model card, Markdown behind a YAML header."""
    header = {
        'library_name': 'ddn-networks',
        'pipeline_tag': 'unconditional-image-generation',
        'tags': ['discrete-distribution-networks'],
        **({'license': license} if license else {}),
    }
    height, width = net.img_resolution
    facts = {
        'images': f'{height} x {width}, {net.img_channels} channel{"s" * (net.img_channels > 1)}',
        'layers L, codes D': f'{net.num_layers}, {net.num_codes}',
        'outputs per layer, K': ', '.join(map(str, sorted(set(net.num_nodes), reverse=True))),
        'bits of a latent': f'{net.num_bits:,.0f}',
        'parameters': f'{sum(p.numel() for p in net.parameters()):,}',
        'condition': str(net.conditions) if net.conditions else 'none',
        'samples': 'by its own prior' if net.prior else 'uniform choices',
        'trained on': trained_on,
        **figures,
    }
    parts = [
        '\n'.join(['---', *(f'{key}: {json.dumps(value)}' for key, value in header.items()), '---']),
        f'# {repo.split("/")[1] if repo else "Discrete Distribution Network"}',
        'A Discrete Distribution Network ([Yang, ICLR 2025](https://arxiv.org/abs/2401.00036)): each layer outputs K '
        'images, one of them is selected, and the next layer refines it. The selections are the latent.',
        f'![{NUM_SAMPLES} samples]({SHEET})' if has_sheet else '',
        '\n'.join(['| | |', '| --- | --- |', *(f'| {_text(key)} | {_text(value)} |' for key, value in facts.items())]),
        "```python\nimport ddn_networks  # with the extra 'hub'\n\n"
        f"net = ddn_networks.Network.from_pretrained('{f'hf:{repo}' if repo else 'FOLDER'}')\n"
        f'images, codes = net.sample(16{", condition=..." * (not has_sheet)})\nddn_networks.show(images)\n```',
    ]
    return '\n\n'.join(part for part in parts if part) + '\n'


def _text(value: Any) -> str:
    """Text that stays within its line and its cell of a table."""
    return ' '.join(str(value).split()).replace('|', '\\|')[:1000]
