"""A small random CLIP."""

import json

import pytest
import torch


def tiny_open_clip(folder, name: str) -> tuple:
    """(open_clip, a small random CLIP, the file of its weights), known to open_clip by ``name``; skips the test where
    open_clip is not installed."""
    try:
        import open_clip
    except ImportError as error:
        pytest.skip(f'open_clip is not installed ({error})')
    config = {
        'embed_dim': 16,
        'vision_cfg': {'image_size': 16, 'layers': 1, 'width': 32, 'patch_size': 8, 'head_width': 16},
        'text_cfg': {'context_length': 77, 'vocab_size': 49408, 'width': 16, 'heads': 2, 'layers': 1},
    }
    (folder / f'{name}.json').write_text(json.dumps(config))
    open_clip.add_model_config(folder / f'{name}.json')
    torch.manual_seed(0)
    clip = open_clip.CLIP(**config).eval()
    torch.save(clip.state_dict(), folder / 'weights.pt')
    return open_clip, clip, folder / 'weights.pt'
