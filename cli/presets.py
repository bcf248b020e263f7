"""Presets of ``train.py --preset``: the settings of the paper's experiments, and small ones for CPUs.

A preset's options are train.py's own, by their names in Python (``--max-k`` is 'max_k'); options on the command line
win. Numbers without a source here are the paper's (Section 4) or its author's published training configuration.
"""

from typing import Any, NamedTuple


class Preset(NamedTuple):
    """What a preset trains, in one line, and its options."""

    description: str
    options: dict[str, Any]


CIFAR10 = {'max_k': 64, 'max_blocks': 32, 'batch': 2048, 'lr': 1e-3, 'duration': 200.0}
FACES64 = {'max_k': 512, 'max_blocks': 64, 'batch': 512, 'lr': 1e-3, 'duration': 88.0}
MNIST = {
    'arch': 'recurrent',
    'nodes': '64',
    'steps': 10,
    'batch': 256,
    'lr': 1e-3,
    'lr_ramp': 0.05,
    'lr_decay': 'cosine',
    'duration': 6.0,  # a hundred times the training set
    'ema': '0.05',
}

# Small networks for one core of a CPU, which begin at 8x8: half an hour to an hour in float32.
SMALL = {
    'batch': 32,
    'lr': 2e-3,
    'lr_ramp': 0.002,
    'lr_decay': 'cosine',
    'beta2': 0.99,
    'chain_dropout': 0.05,
    'ema': '0.004',
    'snap': 2,
    'dump': 2,
    'seed': 0,
}
CIFAR10_WHOLE = {
    **SMALL,
    'channels': '64,32,16',
    'blocks': '5,5,4',
    'nodes': '128,64,64',
    'duration': 0.18,
    'tick': 15.0,
}
FACES64_WHOLE = {
    **SMALL,
    'channels': '64,48,24,12',
    'blocks': '4,5,4,3',
    'nodes': '128,128,64,64',
    'duration': 0.07,
    'tick': 5.0,
}
# Layers that choose per cell, and a prior of their own (experiments/cells.py). Low: most blocks at 8x8 and 16x16, and a
# last scale that works at half its size. Heads take a third of a step. With a finisher 80 minutes of one core at most.
LOW = {**SMALL, 'unshuffle': 2, 'xflip': True, 'prior': 'head', 'temperature_from': 'alex'}
FASHION_CPU = {
    **LOW,
    'channels': '64,32,24',
    'blocks': '6,5,3',
    'nodes': '64,32,16',
    'grids': '1,1,1,1,1,1,1,2,2,2,4,4,4,4',
    'xflip': False,
    'prior_width': 32,
    'prior_gradient': 0.02,
    'duration': 0.075,
    'tick': 5.0,
}
# Small steps: a layer's cells are independent given the layers before. Many layers of few nodes draw better samples at
# temperature 1 than few layers of many, and worse ones at chosen temperatures after 15 minutes (experiments/cells.py).
CIFAR10_CPU = {
    **LOW,
    'channels': '64,32,24',
    'blocks': '12,4,2',
    'nodes': '8',
    'grids': '1,1,1,1,2,2,2,2,4,4,4,4,4,8,8,8,8,8',
    'prior_width': 32,
    'prior_gradient': 0.02,
    'duration': 0.065,
    'tick': 5.0,
}
FACES64_CPU = {
    **LOW,
    'channels': '96,48,24,24',
    'blocks': '13,4,2,1',
    'nodes': '8,8,16,16',
    'grids': '1,1,1,1,2,2,2,2,4,4,4,4,8,8,8,8,8,8,8,8',
    'prior_width': 48,
    'prior_gradient': 0.02,
    'duration': 0.066,
    'tick': 3.0,
}
# Ten minutes of one H100, half of them for this: planned by their arithmetic, and not run on a GPU yet.
GPU = {**LOW, 'batch': 256, 'lr_ramp': 0.02, 'ema': '0.02', 'precision': 'bf16', 'snap': 5, 'dump': 5}
CIFAR10_GPU = {
    **GPU,
    'channels': '256,192,160,128',
    'blocks': '4,6,5,2',
    'nodes': '256,256,256,64',
    'grids': '1,1,1,1,1,2,2,2,4,4,4,4,8,8,8,8,8',
    'prior_width': 80,
    'duration': 1.2,
    'tick': 100.0,
}
FACES64_GPU = {
    **GPU,
    'channels': '192,192,128,96',
    'blocks': '6,6,3,2',
    'nodes': '256,256,256,64',
    'grids': '1,1,1,1,2,2,2,4,4,4,8,8,8,8,8,8,16',
    'prior_width': 96,
    'duration': 0.6,
    'tick': 50.0,
}
# Begins at 8x8, where the first choice is a whole digit. For the balance see experiments/balance_ablation.py.
MNIST_CPU = {
    'channels': '64,32,16',
    'blocks': '4,4,2',
    'nodes': '64,16,8',
    'balance': 'prefix',
    'batch': 32,
    'chain_dropout': 0.1,
    'lr': 4e-3,
    'lr_ramp': 0.002,
    'lr_decay': 'cosine',
    'beta2': 0.99,
    'duration': 0.105,
    'ema': '0.004',
    'tick': 5.0,
    'snap': 8,
    'dump': 8,
    'seed': 0,
}

# Trees of digits at 16x16 (Table 3), on one core of a CPU. Images with the same choices so far share their features, so
# large batches cost little; Chain Dropout trains the children of every node. Those of K = 8 are recurrent, and a deep
# one begins with the weights of a shallow one (--transfer; docs/latents.md has the commands).
RECURRENT = {'arch': 'recurrent', 'base_width': 16, 'cres': '1,2,4', 'blocks': '1'}
TREE = {
    'share_prefixes': True,
    'batch': 1024,
    'chain_dropout': 0.1,
    'lr': 2e-3,
    'lr_ramp': 0.05,
    'lr_decay': 'cosine',
    'beta2': 0.99,
    'duration': 3.0,
    'ema': '0.1',
    'tick': 250.0,
    'seed': 0,
}
DEEP = {**TREE, **RECURRENT, 'chain_dropout': 0.03, 'lr': 1e-3, 'tick': 10.0}
TREE_2X10 = {
    **TREE,
    'channels': '32,24',
    'blocks': '3,7',
    'nodes': '2',
    'chain_dropout': 0.03,
    'lr': 3e-3,
    'duration': 2.5,
    'ema': '0.05',
    'tick': 100.0,
}
TREE_8X3 = {**TREE, **RECURRENT, 'nodes': '8', 'steps': 3}
TREE_8X5 = {
    **DEEP,
    'nodes': '8',
    'steps': 5,
    'batch': 512,
    'chain_dropout': 0.05,
    'lr_ramp': 0.005,
    'duration': 0.1,
    'ema': '0.01',
}
TREE_8X10 = {
    **DEEP,
    'nodes': '8',
    'steps': 10,
    'batch': 256,
    'lr_ramp': 0.003,
    'duration': 0.02,
    'ema': '0.002',
}
# The first two layers of the next, of digits at 8x8: with shared prefixes they see 24,000 of them a second.
TREE_64X2 = {
    **TREE,
    'channels': '96',
    'blocks': '2',
    'nodes': '64',
    'batch': 4096,
    'chain_dropout': 0.03,
    'lr': 4e-3,
    'lr_ramp': 0.2,
    'duration': 8.0,
    'ema': '0.4',
    'tick': 400.0,
}
TREE_64X10 = {
    **TREE,
    'channels': '96,24',
    'blocks': '2,8',
    'nodes': '64',
    'batch': 256,
    'chain_dropout': 0.03,
    'lr_ramp': 0.02,
    'duration': 0.25,
    'ema': '0.01',
    'tick': 10.0,
}
# Begins with the result of --steps=2 --batch=1024 --chain-dropout=0.05 --lr=2e-3 --lr-ramp=0.02 --duration=0.8
# --ema=0.03.
RECURRENT_CPU = {
    **DEEP,
    'nodes': '64',
    'steps': 10,
    'batch': 128,
    'lr_ramp': 0.005,
    'duration': 0.04,
    'ema': '0.005',
}
# At 32x32, where the first choice, at 16x16, is a whole digit.
TREE_8X4 = {
    **TREE,
    'channels': '32,16',
    'blocks': '3,1',
    'nodes': '8',
    'balance': 'prefix',
    'batch': 128,
    'chain_dropout': 0.0,
    'lr': 4e-3,
    'lr_ramp': 0.01,
    'duration': 0.15,
    'ema': '0.01',
    'tick': 3.0,
    'snap': 1,
}

# Conditional networks are balanced given the condition: a node that never serves a class makes bad samples of it.
PREFIX = {'balance': 'prefix'}
# Section 4.2: no Chain Dropout at K = 2.
BINARY = {'chain_dropout': 0.0}

PRESETS = {
    # One core of a CPU.
    'mnist-cpu': Preset('digits, 32x32; the quick start, minutes on a CPU', MNIST_CPU),
    'mnist-class-cpu': Preset('the same, class-conditional', {**MNIST_CPU, 'condition': ['onehot']}),
    'fashion-cpu': Preset('Fashion-MNIST, 32x32, layers with cells and a prior, half an hour on a CPU', FASHION_CPU),
    'cifar10-cpu': Preset('CIFAR-10, layers with cells and a prior, 35 minutes on a CPU', CIFAR10_CPU),
    'cifar10-whole-cpu': Preset('CIFAR-10, layers of whole images, an hour on a CPU', CIFAR10_WHOLE),
    'cifar10-class-cpu': Preset('the same, class-conditional', {**CIFAR10_WHOLE, 'condition': ['onehot'], **PREFIX}),
    'faces64-cpu': Preset('faces, 64x64, layers with cells and a prior, an hour on a CPU', FACES64_CPU),
    'faces64-whole-cpu': Preset('faces, layers of whole images, half an hour on a CPU', FACES64_WHOLE),
    'faces64-color-cpu': Preset('the same, colouring grey faces', {**FACES64_WHOLE, 'condition': ['color'], **PREFIX}),
    'faces64-edge-cpu': Preset('the same, from edges to faces', {**FACES64_WHOLE, 'condition': ['edge'], **PREFIX}),
    'mnist-tree-2x10': Preset('digits, 16x16, K = 2, L = 10 on a CPU (Table 3)', TREE_2X10),
    'mnist-tree-8x3': Preset('digits, 16x16, K = 8, L = 3 on a CPU (Table 3)', TREE_8X3),
    'mnist-tree-8x5': Preset('the same with L = 5; begins with 8x3 (--transfer)', TREE_8X5),
    'mnist-tree-8x10': Preset('the same with L = 10; begins with 8x5 (--transfer)', TREE_8X10),
    'mnist-tree-64x2': Preset('digits, 8x8, the first two layers of 64x10', TREE_64X2),
    'mnist-tree-64x10': Preset('digits, 16x16, K = 64, L = 10; begins with 64x2 (--transfer)', TREE_64X10),
    'mnist-tree-8x4': Preset('digits, 32x32, a tree to look at (Figs. 6, 18)', TREE_8X4),
    'mnist-recurrent-cpu': Preset('digits, 16x16, a small recurrent network on a CPU', RECURRENT_CPU),
    # Ten minutes of a GPU.
    'cifar10-gpu': Preset('CIFAR-10, minutes on an H100; not run on a GPU yet', CIFAR10_GPU),
    'faces64-gpu': Preset('faces, 64x64, minutes on an H100; not run on a GPU yet', FACES64_GPU),
    # As in the paper. Of the recurrent ones (Table 3, Figs. 6, 10, 18) it does not give batch, learning rate, duration.
    'mnist-recurrent': Preset('digits, one UNet applied 10 times (Fig. 3c)', MNIST),
    'mnist-tree': Preset('the same with K = 8, L = 3 (Fig. 6)', {**MNIST, 'nodes': '8', 'steps': 3}),
    'taiji': Preset('the same with K = 2: Taiji-DDN', {**MNIST, 'nodes': '2', **BINARY}),
    'cifar10': Preset('CIFAR-10 (Table 1)', CIFAR10),
    'cifar10-class': Preset('the same, class-conditional (Fig. 5d)', {**CIFAR10, 'condition': ['class']}),
    'faces64': Preset('FFHQ or CelebA-HQ, 64x64, K = 512 (Table 2)', FACES64),
    'faces64-k64': Preset('the same with K = 64 (Table 2)', {**FACES64, 'max_k': 64}),
    'faces64-k8': Preset('the same with K = 8 (Table 2)', {**FACES64, 'max_k': 8}),
    'faces64-k2': Preset('the same with K = 2: BinDDN', {**FACES64, 'max_k': 2, **BINARY}),
    'faces64-no-split-and-prune': Preset('faces64 without Split-and-Prune (Table 2)', {**FACES64, 'balance': 'none'}),
    'faces64-no-chain-dropout': Preset('faces64 without Chain Dropout (Table 2)', {**FACES64, 'chain_dropout': 0.0}),
    'faces64-no-learning-residual': Preset(
        'faces64 without residuals (Table 2)', {**FACES64, 'learning_residual': False}
    ),
    'faces64-no-leak-choice': Preset('faces64 without Leak Choice (Table 2)', {**FACES64, 'leak_choice': False}),
    # Learning rate, batch and K are published, the duration is the shortest of those.
    'color256': Preset(
        'colouring at 256x256 (Fig. 8)',
        {'condition': ['color'], 'max_k': 64, 'batch': 512, 'lr': 2e-4, 'duration': 88.0},
    ),
}


def presets_help() -> str:
    """Every preset in a line."""
    width = max(map(len, PRESETS)) + 2
    return '\n'.join(f'{name:<{width}}{preset.description}' for name, preset in PRESETS.items())
