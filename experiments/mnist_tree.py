"""Table 3: the latents of a DDN as a decision tree on MNIST, against other classifiers of the same codes.

    python latents.py encode --network=NET --data=datasets/mnist16-train.zip --dest=train.npz --beam=64
    python latents.py encode --network=NET --data=datasets/mnist16-test.zip --dest=test.npz --beam=64
    python -m experiments.mnist_tree --train=train.npz --test=test.npz --outdir=experiments/results/mnist_tree

Of the training set, 128, 1,024, 10,000 and 50,000 random images are labelled (mean of several draws). In the tree,
labelled images vote at all nodes above them, and a node without votes inherits from its nearest ancestor with any
(Appendix C). The paper has neither of the others: the k nearest neighbours by common prefix, and logistic regression on
the one-hot codes. Repeat --train and --test for several networks.

The codes of a beam search belong to a nearer image than greedy ones and say more about the class; --beam=1 gives the
paper's. docs/latents.md says how the networks are trained.

Without --test, the last 10,000 training images, which never vote (--held-out), are classified instead: to choose
between networks without looking at the test set.
"""

import os
import statistics
import time

import click
import torch
import torch.nn.functional as F

from cli.code_files import CodeFile, read_code_file
from cli.options import script
from cli.tables import markdown, write_results
from ddn_networks.codes import vote

SIZES = (128, 1024, 10_000, 50_000)
PAPER = {  # (K, L) -> accuracy in % at SIZES, Table 3
    (2, 10): (65.9, 77.3, 85.8, 86.9),
    (8, 3): (69.0, 81.1, 87.6, 88.0),
    (8, 5): (67.5, 79.1, 87.5, 90.5),
    (8, 10): (58.6, 75.3, 84.9, 89.0),
    (64, 10): (52.5, 70.4, 80.9, 86.3),
}


class Logistic:
    """Multinomial logistic regression on one-hot codes [N, L].

    The loss is the mean cross entropy plus ``l2 / 2 |weights|^2 / N`` (scikit-learn's prior at C = 1 / l2; the bias is
    not penalised).
    """

    def __init__(self, num_nodes: list[int], num_classes: int, l2: float = 1.0):
        ends = torch.tensor(num_nodes).cumsum(0)
        self.offsets = ends - torch.tensor(num_nodes)  # [L]
        self.weight = torch.zeros(int(ends[-1]), num_classes, dtype=torch.float64)  # [sum K, classes]
        self.bias = torch.zeros(num_classes, dtype=torch.float64)
        self.l2 = l2

    def logits(self, codes: torch.Tensor) -> torch.Tensor:
        return F.embedding_bag(codes + self.offsets, self.weight, mode='sum') + self.bias  # [N, classes]

    def loss(self, codes: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        prior = 0.5 * self.l2 * self.weight.square().sum() / len(codes)
        return F.cross_entropy(self.logits(codes), labels) + prior

    def fit_(self, codes: torch.Tensor, labels: torch.Tensor, steps: int = 200) -> 'Logistic':
        """Minimise the loss by L-BFGS on the full batch."""
        parameters = [self.weight.requires_grad_(), self.bias.requires_grad_()]
        optimizer = torch.optim.LBFGS(parameters, max_iter=steps, line_search_fn='strong_wolfe', tolerance_grad=1e-6)

        def closure():
            optimizer.zero_grad()
            loss = self.loss(codes, labels)
            loss.backward()
            return loss

        optimizer.step(closure)
        return self

    @torch.no_grad()
    def predict(self, codes: torch.Tensor) -> torch.Tensor:
        return self.logits(codes).argmax(1)


def accuracies(train: CodeFile, test: CodeFile, size: int, draws: int, k: int) -> dict[str, float]:
    """Mean accuracy in % over draws of ``size`` labelled images, for each method."""
    codes, labels = torch.from_numpy(train.codes), torch.from_numpy(train.labels)
    queries, truth = torch.from_numpy(test.codes), torch.from_numpy(test.labels)
    classes = int(max(labels.max(), truth.max())) + 1
    num_nodes = train.num_nodes.tolist()
    found = {'tree': [], f'{k}-nn': [], 'logistic': []}
    for draw in range(draws):
        rows = torch.randperm(len(codes), generator=torch.Generator().manual_seed(draw))[:size]
        known = codes[rows], labels[rows]
        made = (
            vote(*known, queries, classes),
            vote(*known, queries, classes, min_votes=k),
            Logistic(num_nodes, classes).fit_(*known).predict(queries),
        )
        for name, classes_found in zip(found, made, strict=True):
            found[name].append(100 * (classes_found == truth).double().mean().item())
    return {name: statistics.mean(values) for name, values in found.items()}


def checked(path: str) -> CodeFile:
    file = read_code_file(path)
    if file.labels is None or file.num_nodes is None:
        raise ValueError(f'{path} has no labels: make it by `latents.py encode` of a dataset with class labels')
    return file


def part(file: CodeFile, rows: slice) -> CodeFile:
    """Codes and labels of some rows."""
    return CodeFile(file.codes[rows], None, file.labels[rows], file.num_nodes)


def compare(train: CodeFile, test: CodeFile, sizes: list[int], draws: int, k: int) -> list[dict]:
    """A row of accuracies per method, a column per number of labels, and the paper's row for a network that it has."""
    K, L = int(max(train.num_nodes)), len(train.num_nodes)
    if list(train.num_nodes) != list(test.num_nodes):
        raise ValueError('--train and --test hold codes of different networks')
    columns = {}
    for size in sizes:
        if size > len(train.codes):
            raise ValueError(f'--sizes={size}: there are {len(train.codes)} training images that may be labelled')
        columns[size] = accuracies(train, test, size, draws if size < 50_000 else 1, k)
    rows = [{'K': K, 'L': L, 'method': m, **{str(s): columns[s][m] for s in sizes}} for m in columns[sizes[0]]]
    if (K, L) in PAPER:
        paper = dict(zip(SIZES, PAPER[K, L], strict=True))
        rows.append({'K': K, 'L': L, 'method': 'paper (tree)', **{str(s): paper.get(s) for s in sizes}})
    return rows


@script(__file__)
@click.option('--train', metavar='NPZ', required=True, multiple=True, help='Codes of the training set')
@click.option('--test', metavar='NPZ', multiple=True, help='Codes of the test set  [default: the held-out rows]')
@click.option('--held-out', metavar='INT', type=click.IntRange(min=0), default=10_000,
              help='Training images, from the end, that never vote')
@click.option('--sizes', metavar='LIST', default=','.join(map(str, SIZES)), help='Numbers of labelled images')
@click.option('--draws', metavar='INT', type=click.IntRange(min=1), default=5, help='Draws of them, below 50,000')
@click.option('--k', metavar='INT', type=click.IntRange(min=2), default=5, help='Nearest neighbours')
@click.option('--outdir', metavar='DIR', help='Write mnist_tree.md and mnist_tree.json there')
@click.option('--note', metavar='TEXT', default='', help='Remark above the table')
def main(train, test, held_out, sizes, draws, k, outdir, note) -> None:
    if test and len(train) != len(test):
        raise ValueError(f'{len(train)} --train and {len(test)} --test: give as many of both')
    if not (test or held_out):
        raise ValueError('--held-out=0 needs --test: there is nothing to classify')
    numbers = [int(size) for size in sizes.split(',')]
    rows, start = [], time.time()
    for a, b in zip(train, test or [None] * len(train), strict=True):
        known = checked(a)
        voters = max(0, len(known.codes) - held_out)
        asked = checked(b) if b else part(known, slice(voters, None))
        rows += compare(part(known, slice(voters)), asked, numbers, draws, k)
        click.echo(f'{a}: done after {time.time() - start:.0f} s', err=True)
    text, asked_of = markdown(rows, '.1f'), 'test set' if test else 'held-out training images'
    click.echo(text)
    if outdir:
        names = [os.path.basename(path) for path in train]
        facts = {'codes': names, 'asked': asked_of, 'draws': draws, 'k': k, 'note': note, 'rows': rows}
        title = f'# Table 3: accuracy on the {asked_of} in %, by number of labelled images'
        write_results(os.path.join(outdir, 'mnist_tree'), '\n\n'.join(filter(None, (title, note, text))), facts)


if __name__ == '__main__':
    main()
