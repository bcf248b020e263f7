"""Settings that ``train.py --preset`` knows: those of the paper's experiments, and small ones for CPUs.

Each is a dict of train.py's own options, by their names in Python (``--max-k`` is 'max_k'); options on the command line
win. Numbers without a source here are the paper's (Section 4) or its author's published training configuration.
"""

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

# Trees of digits at 16x16 (Table 3), on one core of a CPU. Images that chose alike share their features, so large
# batches cost little; Chain Dropout brings life to the children of every node. Those of K = 8 are recurrent, and a deep
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

PRESETS = {
    'cifar10-cpu': {
        **SMALL,
        'channels': '64,32,16',
        'blocks': '5,5,4',
        'nodes': '128,64,64',
        'duration': 0.18,
        'tick': 15.0,
    },
    'faces64-cpu': {
        **SMALL,
        'channels': '64,48,24,12',
        'blocks': '4,5,4,3',
        'nodes': '128,128,64,64',
        'duration': 0.07,
        'tick': 5.0,
    },
    # Begins at 8x8, where the first choice is a whole digit. Balanced so: see experiments/balance_ablation.py.
    'mnist-cpu': {
        'channels': '64,32,16',
        'blocks': '4,4,2',
        'nodes': '64,16,8',
        'balance': 'conditional',
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
    },
    # Table 3, Figs 6, 10, 18. Batch, learning rate and duration are ours: the paper does not say.
    'mnist-recurrent': MNIST,
    'mnist-tree': {**MNIST, 'nodes': '8', 'steps': 3},
    'mnist-tree-2x10': {
        **TREE,
        'channels': '32,24',
        'blocks': '3,7',
        'nodes': '2',
        'chain_dropout': 0.03,
        'lr': 3e-3,
        'duration': 2.5,
        'ema': '0.05',
        'tick': 100.0,
    },
    'mnist-tree-8x3': {**TREE, **RECURRENT, 'nodes': '8', 'steps': 3},
    'mnist-tree-8x5': {  # after 8x3
        **DEEP,
        'nodes': '8',
        'steps': 5,
        'batch': 512,
        'chain_dropout': 0.05,
        'lr_ramp': 0.005,
        'duration': 0.1,
        'ema': '0.01',
    },
    'mnist-tree-8x10': {  # after 8x5
        **DEEP,
        'nodes': '8',
        'steps': 10,
        'batch': 256,
        'lr_ramp': 0.003,
        'duration': 0.02,
        'ema': '0.002',
    },
    # The first two layers of the next, of digits at 8x8: with shared prefixes they see 24,000 of them a second.
    'mnist-tree-64x2': {
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
    },
    'mnist-tree-64x10': {  # after 64x2
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
    },
    # A recurrent network of the paper's K and L, smaller; begins with what --steps=2 --batch=1024 --chain-dropout=0.05
    # --lr=2e-3 --lr-ramp=0.02 --duration=0.8 --ema=0.03 makes of it.
    'mnist-recurrent-cpu': {
        **DEEP,
        'nodes': '64',
        'steps': 10,
        'batch': 128,
        'lr_ramp': 0.005,
        'duration': 0.04,
        'ema': '0.005',
    },
    # Figs 6 and 18 at 32x32, with a film: the first choice, at 16x16, is a whole digit.
    'mnist-tree-8x4': {
        **TREE,
        'channels': '32,16',
        'blocks': '3,1',
        'nodes': '8',
        'balance': 'conditional',
        'batch': 128,
        'chain_dropout': 0.0,
        'lr': 4e-3,
        'lr_ramp': 0.01,
        'duration': 0.15,
        'ema': '0.01',
        'tick': 3.0,
        'snap': 1,
    },
    'taiji': {**MNIST, 'nodes': '2', 'chain_dropout': 0.0},  # Taiji-DDN, BinDDN; Section 4.2: no Chain Dropout at K=2
    'cifar10': CIFAR10,
    'faces64': FACES64,  # FFHQ-64x64, CelebA-HQ-64x64: "K=512 (default)" of Table 2
    'faces64-k64': {**FACES64, 'max_k': 64},
    'faces64-k8': {**FACES64, 'max_k': 8},
    'faces64-k2': {**FACES64, 'max_k': 2, 'chain_dropout': 0.0},  # BinDDN; Section 4.2: no Chain Dropout at K=2
    'faces64-no-split-and-prune': {**FACES64, 'balance': 'none'},
    'faces64-no-chain-dropout': {**FACES64, 'chain_dropout': 0.0},
    'faces64-no-learning-residual': {**FACES64, 'learning_residual': False},
    'faces64-no-leak-choice': {**FACES64, 'leak_choice': False},
    # Colouring at 256x256 (Fig. 8): learning rate, batch and K are published, the duration is the shortest of those.
    'color256': {'condition': ['color'], 'max_k': 64, 'batch': 512, 'lr': 2e-4, 'duration': 88.0},
    'cifar10-class': {**CIFAR10, 'condition': ['class']},  # Fig. 5d
}

# Told of classes, grey pictures or edges, for one core of a CPU: otherwise the unconditional ones of those names, but
# balanced given what they are told (a node that never serves a class draws badly for it).
PRESETS |= {
    'mnist-class-cpu': {**PRESETS['mnist-cpu'], 'condition': ['onehot']},
    'cifar10-class-cpu': {**PRESETS['cifar10-cpu'], 'condition': ['onehot'], 'balance': 'conditional'},
    'faces64-color-cpu': {**PRESETS['faces64-cpu'], 'condition': ['color'], 'balance': 'conditional'},
    'faces64-edge-cpu': {**PRESETS['faces64-cpu'], 'condition': ['edge'], 'balance': 'conditional'},
}
