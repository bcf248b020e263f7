"""Do the samples look like digits? The share that a classifier which saw only real digits reads with confidence.

    python experiments/digit_quality.py --network=out/quickstart/run/network-snapshot-....safetensors

Draws uniform samples, and reads them and real digits with the LeNet of ../shared/weights (99.0 % on MNIST). A sample
counts as read where the largest class probability is at least 0.9. Also says how the samples spread over the classes,
and the PSNR of reconstructed held-out digits.
"""

import json
import os
import sys

import click
import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from cli.options import one_line_errors, script_help
from ddn_networks import Network
from dnnlib.archives import ImageArchive
from dnnlib.images import to_float, to_uint8
from dnnlib.util import atomic_write
from metrics.detectors import read_state, weights_path
from metrics.lenet import LeNet
from torch_utils import misc


@torch.no_grad()
def probabilities(lenet: LeNet, images: torch.Tensor) -> torch.Tensor:
    """Class probabilities [N, 10] of images [N, 1, 32, 32], quantised to 8 bits as a PNG would be."""
    return torch.cat([lenet.probabilities(to_float(to_uint8(part))) for part in images.split(500)])


@click.command(help=script_help(__file__), context_settings={'show_default': True})
@click.option('--network', required=True, help='Network snapshot')
@click.option('--real', default='datasets/quickstart/test.zip', help='Held-out digits (zip of dataset_tool.py)')
@click.option('--num', default=1000, help='Samples, from seeds 0 .. num - 1')
@click.option('--ema', help="Averaged weights, or 'none'")
@click.option('--out', help='Write the numbers here too (.json)')
@one_line_errors()
def main(network: str, real: str, num: int, ema: str | None, out: str | None) -> None:
    lenet = LeNet().load_weights_(read_state(weights_path('lenet'))).eval()
    net = Network.from_pretrained(network, ema=ema)
    samples = torch.cat([net.sample(seeds=part.tolist())[0] for part in torch.arange(num).split(250)])
    archive = ImageArchive(real)
    digits = to_float(torch.stack([torch.from_numpy(archive.image(i)) for i in range(len(archive))]))
    p_samples, p_digits = probabilities(lenet, samples), probabilities(lenet, digits)
    decoded = torch.cat([net.decode(net.encode(part)) for part in digits.split(250)]).clamp(-1, 1)
    result = {
        'samples_read': (p_samples.amax(1) >= 0.9).double().mean().item(),
        'real_read': (p_digits.amax(1) >= 0.9).double().mean().item(),
        'num_samples': num,
        'num_real': len(digits),
        'samples_per_class': p_samples.argmax(1).bincount(minlength=10).tolist(),
        'held_out_psnr': misc.psnr((decoded - digits).square().mean().item()),
        'bits': net.num_bits,
        'network': {k: net.snapshot_meta.get(k) for k in ('preset', 'cur_nimg', 'git_revision')},
    }
    print(json.dumps(result, indent=2))
    if out:
        with atomic_write(out, 'w') as f:
            json.dump(result, f, indent=2)


if __name__ == '__main__':
    main()
