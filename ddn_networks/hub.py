"""Networks on the Hugging Face Hub.

    net = ddn_networks.Network.from_pretrained('hf:owner/name')              # or hf:owner/name@revision
    net.push_to_hub('owner/name', trained_on='MNIST, 60,000 digits')

Transfers need the package huggingface_hub (the extra ``hub``); it keeps downloads in its own cache and reads
``HF_ENDPOINT``, ``HF_TOKEN`` and ``HF_HUB_OFFLINE``.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WEIGHTS = 'model.safetensors'  # the snapshot in a repository, or in a folder of ``Network.save_pretrained``
_REPO = r'[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*'


def is_hub_name(network: str | os.PathLike) -> bool:
    """Whether a network is named as one of the Hub, 'hf:...'."""
    return str(network).startswith('hf:')


def download(network: str) -> Path:
    """The file of 'hf:owner/name' or 'hf:owner/name@revision' in the cache of huggingface_hub. ValueError for another
    name, OSError in one line where it cannot be fetched."""
    match = re.fullmatch(rf'hf:({_REPO})(?:@([\w./-]+))?', network)
    if match is None:
        raise ValueError(f'{network} does not name a network of the Hub: give hf:owner/name or hf:owner/name@revision')
    with _client(network) as client:
        return Path(client.hf_hub_download(match[1], WEIGHTS, revision=match[2], library_name='ddn-networks'))


def check_repo(repo: str) -> None:
    """ValueError unless ``repo`` is owner/name."""
    if not re.fullmatch(_REPO, repo):
        raise ValueError(f'{repo} is not a repository of the Hub: give owner/name')


def upload(folder: str | os.PathLike, repo: str, private: bool | None, message: str) -> str:
    """Commit the files of a folder to a model repository, which is made where it does not exist. Returns the address of
    the commit; OSError in one line."""
    with _client(repo) as client:
        client.create_repo(repo, private=private, exist_ok=True)
        return client.upload_folder(repo_id=repo, folder_path=folder, commit_message=message).commit_url


@contextlib.contextmanager
def _client(name: str) -> Iterator[Any]:
    """The package huggingface_hub; what its functions raise is an OSError in one line."""
    try:
        import huggingface_hub
    except ImportError:
        raise OSError(f"{name} needs the package huggingface_hub: pip install 'ddn-networks[hub]'") from None
    try:
        yield huggingface_hub
    except Exception as error:  # several families: of HTTP, of names, of files
        lines = [' '.join(line.split()) for line in str(error).splitlines()]
        text = ' '.join(line for line in lines if line and 'Request ID' not in line) or type(error).__name__
        raise OSError(f'{name}: the Hub cannot be used: {text[:300]}') from None
