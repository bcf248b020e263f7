"""Latents as data: codes compared, mixed and voted with slow obvious oracles; latents.py and the figures as run."""

import json
import os
import re
import zipfile
from collections import Counter
from pathlib import Path

import forks
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import unpadded, write_zip
from PIL import Image

import latents
from cli.code_files import CodeFile, read_code_file, write_code_file, write_codes
from cli.originals import Originals
from ddn_networks import DDN, RecurrentDDN, codes, snapshots
from dnnlib.images import to_image, to_uint8
from dnnlib.sheets import CAPTION, save_png
from experiments import latent_tree, mnist_tree


def random_codes(N: int, L: int, K: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(K, (N, L), generator=torch.Generator().manual_seed(seed))


def prefix_of(a: list[int], b: list[int]) -> int:
    return next((l for l, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a))


# Comparing, editing, bits.


def test_prefix_and_hamming_by_hand():
    a, b = random_codes(6, 5, 2), random_codes(9, 5, 2, seed=1)
    prefix, differ = codes.common_prefix(a, b), codes.hamming(a, b)
    for i, x in enumerate(a.tolist()):
        for j, y in enumerate(b.tolist()):
            assert prefix[i, j] == prefix_of(x, y)
            assert differ[i, j] == sum(p != q for p, q in zip(x, y, strict=True))


@pytest.mark.parametrize('by', ['prefix', 'hamming'])
def test_nearest_by_sorting(by):
    table, queries = random_codes(40, 4, 2), random_codes(70, 4, 2, seed=1)
    found = codes.nearest(queries, table, 7, by)

    def far(query: list[int], row: int) -> tuple:
        prefix = -prefix_of(query, table[row].tolist())
        differ = sum(p != q for p, q in zip(query, table[row].tolist(), strict=True))
        return (prefix, differ, row) if by == 'prefix' else (differ, prefix, row)

    for query, rows in zip(queries.tolist(), found.tolist(), strict=True):
        assert rows == sorted(range(40), key=lambda r, q=query: far(q, r))[:7]


def test_swap_and_path():
    a, b = random_codes(2, 5, 4), random_codes(3, 5, 4, seed=1)
    for n in range(6):
        mixed = codes.swap(a, b, n)
        for i in range(2):
            for j in range(3):
                assert mixed[i, j].tolist() == a[i, :n].tolist() + b[j, n:].tolist()
    start, end = torch.tensor([0, 1, 2, 3]), torch.tensor([1, 1, 0, 0])
    assert codes.path(start, end).tolist() == [[0, 1, 2, 3], [0, 1, 2, 0], [0, 1, 0, 0], [1, 1, 0, 0]]
    assert codes.path(start, end, True).tolist() == [[0, 1, 2, 3], [1, 1, 2, 3], [1, 1, 0, 3], [1, 1, 0, 0]]
    assert codes.path(start, start).tolist() == [start.tolist()]


def test_bits_there_and_back():
    assert codes.to_bits(torch.tensor([[1, 0, 1], [0, 0, 1]]), [2, 2, 2]) == ['101', '001']
    assert codes.to_bits(torch.tensor([[5, 1, 2]]), [8, 2, 4]) == ['101110']
    K = [8, 2, 4, 64]
    table = torch.stack([random_codes(20, 1, k, seed=k)[:, 0] for k in K], 1)
    texts = codes.to_bits(table, K)
    assert {len(t) for t in texts} == {3 + 1 + 2 + 6}
    assert torch.equal(codes.from_bits(texts, K), table)
    assert codes.from_bits([], K).shape == (0, 4)
    for bad in ('10', '1020', '1111111111111'):
        with pytest.raises(ValueError, match='string 1 should be 4 characters'):
            codes.from_bits(['1010', bad], [2] * 4)
    with pytest.raises(ValueError, match='layer 1 has K = 6'):
        codes.to_bits(torch.tensor([[0, 5]]), [2, 6])
    for wrong in (5, -1):
        with pytest.raises(ValueError, match=f'code {wrong} of row 1, layer 0, is outside 0..1'):
            codes.to_bits(torch.tensor([[0, 3], [wrong, 0]]), [2, 4])


# The tree.


def test_groups_and_under_count_everything_once():
    table = random_codes(60, 4, 3)
    for depth in range(1, 5):
        prefixes, counts, at = codes.groups(table, depth)
        want = Counter(tuple(row[:depth]) for row in table.tolist())
        assert {tuple(p): c for p, c in zip(prefixes.tolist(), counts.tolist(), strict=True)} == want
        assert counts.tolist() == sorted(counts.tolist(), reverse=True) and counts.sum() == 60
        assert all(prefixes[g].tolist() == row[:depth] for g, row in zip(at.tolist(), table.tolist(), strict=True))
        for prefix in prefixes.tolist():
            inside = [i for i, row in enumerate(table.tolist()) if row[:depth] == prefix]
            assert codes.under(table, prefix).tolist() == inside
    assert len(codes.under(table, [])) == 60


def voted(table, labels, query, classes, min_votes) -> int:
    """The decision tree, slowly: the votes of every node on the way, deepest first."""
    on_the_way = []
    for depth in range(len(query) + 1):
        inside = [y for row, y in zip(table, labels, strict=True) if row[:depth] == query[:depth]]
        if depth == 0 or len(inside) >= min_votes:
            on_the_way.append([inside.count(c) for c in range(classes)])
    best = range(classes)
    for votes in reversed(on_the_way):  # ties are left to the ancestors, as long as they are ties there
        most = max(votes[c] for c in best)
        best = [c for c in best if votes[c] == most]
    return best[0]


@pytest.mark.parametrize('min_votes', [1, 2, 5])
@pytest.mark.parametrize('N, L, K, classes', [(1, 3, 2, 2), (12, 3, 2, 3), (80, 4, 3, 4), (30, 1, 8, 3)])
def test_votes_against_a_slow_tree(N, L, K, classes, min_votes):
    table, queries = random_codes(N, L, K), random_codes(50, L, K, seed=1)
    labels = random_codes(N, 1, classes, seed=2)[:, 0]
    found = codes.vote(table, labels, queries, classes, min_votes)
    want = [voted(table.tolist(), labels.tolist(), q, classes, min_votes) for q in queries.tolist()]
    assert found.tolist() == want


def test_votes_of_a_table_made_by_hand():
    table = torch.tensor([[0, 0], [0, 1], [0, 1], [1, 0]])
    labels = torch.tensor([2, 1, 1, 0])
    queries = torch.tensor([[0, 0], [0, 1], [0, 7], [1, 1], [5, 5]])
    # own leaf, own leaf, inherits 2-1-1 from 0, inherits 0 from 1, inherits from the root
    assert codes.vote(table, labels, queries, 3).tolist() == [2, 1, 1, 0, 1]
    assert codes.vote(table, labels, queries[:0], 3).shape == (0,)
    large = torch.full((2, 40), 511)  # paths longer than an integer holds
    assert codes.vote(large, torch.tensor([1, 1]), large, 2).tolist() == [1, 1]
    with pytest.raises(ValueError, match='no labelled codes'):
        codes.vote(table[:0], labels[:0], queries, 3)


def test_votes_of_ancestors_count_at_any_depth():
    L = 60
    table = torch.cat([torch.zeros(2, L), torch.ones(5, L)]).long()
    labels = torch.tensor([1, 2, 2, 2, 2, 2, 2])
    assert codes.vote(table, labels, table[:1], 3).tolist() == [2]  # a tie but at the root


def test_logistic_regression_finds_the_minimum():
    table, labels = random_codes(60, 3, 4), random_codes(60, 1, 3, seed=5)[:, 0]
    model = mnist_tree.Logistic([4, 4, 4], 3).fit_(table, labels)
    dense = torch.cat([torch.nn.functional.one_hot(table[:, l], 4) for l in range(3)], 1).double()
    weight, bias = model.weight.detach().requires_grad_(), model.bias.detach().requires_grad_()
    logits = dense @ weight + bias
    torch.testing.assert_close(logits, model.logits(table))
    loss = torch.nn.functional.cross_entropy(logits, labels) + 0.5 * weight.square().sum() / 60
    assert all(g.abs().max() < 1e-5 for g in torch.autograd.grad(loss, [weight, bias]))
    assert torch.equal(model.predict(table), logits.argmax(1))


# The scripts.


@pytest.fixture(scope='module', autouse=True)
def no_gpu():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, 'is_available', lambda: False)
        patch.setattr(torch.backends.mps, 'is_available', lambda: False)
        yield


def run(command, *args, expect: int = 0) -> str:
    result = CliRunner().invoke(command, [str(a) for a in args])
    assert result.exit_code == expect, result.output + repr(result.exception)
    return result.output


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    """A network with K = 8, L = 3, a dataset and its codes, a network with K = 2."""
    folder = tmp_path_factory.mktemp('latents')
    torch.manual_seed(0)
    small = {'base_width': 2, 'multipliers': [1, 2], 'num_blocks': 1, 'features': 8}
    snapshots.save_network(str(folder / 'net.safetensors'), RecurrentDDN(8, 1, 8, 3, **small))
    snapshots.save_network(str(folder / 'bits.safetensors'), RecurrentDDN(8, 1, 2, 6, **small))
    snapshots.save_network(str(folder / 'single.safetensors'), DDN(8, 1, [8, 8], [1, 1], [3, 4]))
    write_zip(folder / 'data.zip', 20, (1, 8, 8))
    write_zip(folder / 'larger.zip', 1, (1, 16, 16))
    write_codes(str(folder / 'few.txt'), np.zeros((3, 3), np.int64))
    (folder / 'empty.txt').touch()
    run(latents.main, 'encode', f'--network={folder}/net.safetensors', f'--data={folder}/data.zip',
        f'--dest={folder}/codes.npz', '--batch=7')  # fmt: skip
    return folder


def test_encode_keeps_codes_names_and_labels(folder):
    file = read_code_file(str(folder / 'codes.npz'))
    assert file.codes.shape == (20, 3) and file.codes.dtype == np.int64 and file.num_nodes.tolist() == [8] * 3
    assert file.names.tolist() == [f'00000/img{i:08d}.png' for i in range(20)]
    assert file.labels.tolist() == [i % 3 for i in range(20)] and file.data == str(folder / 'data.zip')
    pictures = Originals(file, None)
    net = RecurrentDDN.from_pretrained(str(folder / 'net.safetensors'))
    images = torch.stack([torch.from_numpy(pictures[i]) for i in range(20)]) / 127.5 - 1
    assert torch.equal(net.encode(images), torch.from_numpy(file.codes))


def test_labels_that_are_vectors_are_kept_and_told(folder, tmp_path):
    torch.manual_seed(1)
    net = DDN(8, 1, [8, 8], [2, 2], [4, 4], conditions=['vector:2'])
    with torch.no_grad():
        for block in net.blocks:
            block.conv1.weight.mul_(1e5)  # a new block hardly listens
    snapshots.save_network(str(tmp_path / 'net.safetensors'), net)
    data = write_zip(tmp_path / 'data.zip', 6, (1, 8, 8), labels=False)
    names = latents.ImageArchive(data).names()
    vectors = random_codes(6, 2, 100).float() / 50 - 1
    with zipfile.ZipFile(data, 'a') as archive:
        pairs = zip(names, vectors.tolist(), strict=True)
        archive.writestr('dataset.json', json.dumps({'labels': list(pairs)}))
    of, at = f'--network={tmp_path}/net.safetensors', f'--codes={tmp_path}/c.npz'
    run(latents.main, 'encode', of, f'--data={data}', f'--dest={tmp_path}/c.npz', '--batch=4')
    file = read_code_file(str(tmp_path / 'c.npz'))
    assert file.labels is None and torch.equal(torch.from_numpy(file.vectors), vectors)
    table = torch.from_numpy(file.codes)
    run(latents.main, 'decode', of, at, f'--outdir={tmp_path}/out')
    run(latents.main, 'decode', of, at, '--label=1,-1', f'--outdir={tmp_path}/same')
    for folder_, told in (('out', vectors), ('same', torch.tensor([[1.0, -1.0]]))):
        expected = to_uint8(net.decode(table, net.make_condition(told))).int()
        for i, name in enumerate(names):
            found = torch.from_numpy(np.asarray(Image.open(tmp_path / folder_ / name)).astype(int))
            assert (found - expected[i, 0]).abs().max() <= 1
    for command in ('walk', 'swap --coarse=0 --fine=1', 'tree --label=0,0'):
        run(latents.main, *command.split(), of, at, f'--sheet={tmp_path}/s.png')
    assert 'purity' not in run(latents.main, 'cluster', at, f'--sheet={tmp_path}/s.png')
    write_codes(str(tmp_path / 'c.txt'), file.codes)
    args = ['decode', of, f'--codes={tmp_path}/c.txt', f'--outdir={tmp_path}/x']
    assert 'no labels: give --label' in run(latents.main, *args, expect=1)


@pytest.mark.parametrize('labels', [np.zeros(19, int), np.zeros(20), np.zeros((20, 1), int), np.array(['a'] * 20)])
def test_labels_that_do_not_fit_the_codes_are_one_line(folder, tmp_path, labels):
    file = read_code_file(str(folder / 'codes.npz'))
    write_code_file(str(tmp_path / 'c.npz'), file._replace(labels=labels))
    for command in ('cluster', f'tree --network={folder}/net.safetensors'):
        out = run(latents.main, *command.split(), f'--codes={tmp_path}/c.npz', f'--sheet={tmp_path}/s.png', expect=1)
        assert "c.npz: the array 'labels' is" in out and 'not class numbers [N] of its 20 codes' in out


def test_a_recurrent_network_takes_as_many_steps_as_its_codes(folder, tmp_path):
    net = RecurrentDDN.from_pretrained(str(folder / 'net.safetensors'))
    net.num_layers = 5
    table = random_codes(2, 5, 8)
    write_codes(str(tmp_path / 'c.txt'), table.numpy())
    at = [f'--codes={tmp_path}/c.txt', f'--outdir={tmp_path}/o', '--steps=5']
    run(latents.main, 'decode', f'--network={folder}/net.safetensors', *at)
    found = np.asarray(Image.open(tmp_path / 'o' / '000001.png')).astype(int)
    assert np.abs(found - to_uint8(net.decode(table[1:]))[0, 0].numpy()).max() <= 1
    out = run(latents.main, 'decode', f'--network={folder}/single.safetensors', *at, expect=1)
    assert '--steps' in out and 'not recurrent' in out


def test_the_first_images_are_told_the_first_pictures(folder, tmp_path):
    torch.manual_seed(1)
    snapshots.save_network(str(tmp_path / 'net.safetensors'), DDN(8, 1, [8], [3], [4], conditions=['image:1']))
    args = ['encode', f'--network={tmp_path}/net.safetensors', f'--data={folder}/data.zip']
    pictures = f'--condition-image={folder}/data.zip'
    for name, options in (('two', ['--max-images=2', pictures]), ('all', [pictures])):
        run(latents.main, *args, *options, f'--dest={tmp_path}/{name}.npz')
    two, every = (read_code_file(f'{tmp_path}/{name}.npz').codes for name in ('two', 'all'))
    assert np.array_equal(two, every[:2])
    write_zip(tmp_path / 'three.zip', 3, (1, 8, 8))
    out = run(latents.main, *args, f'--condition-image={tmp_path}/three.zip', f'--dest={tmp_path}/x.npz', expect=1)
    assert '3 pictures for 20 images' in out

    # What encoded them decodes them, and each goes with its own picture.
    of, at = args[1], f'--codes={tmp_path}/two.npz'
    run(latents.main, 'decode', of, f'--codes={tmp_path}/all.npz', pictures, f'--outdir={tmp_path}/all')
    run(latents.main, 'decode', of, at, pictures, f'--outdir={tmp_path}/two')
    run(latents.main, 'walk', of, at, pictures, f'--sheet={tmp_path}/w.png')
    run(latents.main, 'swap', of, at, pictures, '--coarse=0', '--fine=1', f'--sheet={tmp_path}/s.png')
    for i in range(2):
        first, same = (np.asarray(Image.open(tmp_path / name / '00000' / f'img{i:08d}.png')) for name in ('all', 'two'))
        assert np.abs(first.astype(int) - same.astype(int)).max() <= 1
    decode = ['decode', of, at, f'--outdir={tmp_path}/x']
    out = run(latents.main, *decode, f'--condition-image={tmp_path}/three.zip', expect=1)
    assert '3 pictures for 2 images' in out
    file = read_code_file(f'{tmp_path}/two.npz')
    for unlike in (file._replace(names=file.names[::-1]), file._replace(data=None), file._replace(data='gone.zip')):
        write_code_file(f'{tmp_path}/two.npz', unlike)  # of which images they are the first ones nobody can say
        assert '20 pictures for 2 images' in run(latents.main, *decode, pictures, expect=1)
    write_code_file(f'{tmp_path}/two.npz', file._replace(data=None))
    run(latents.main, *decode, pictures, f'--data={folder}/data.zip')


def test_decode_and_bits(folder, tmp_path):
    net = f'--network={folder}/bits.safetensors'
    run(latents.main, 'encode', net, f'--data={folder}/data.zip', f'--dest={tmp_path}/c.npz',
        f'--bits={tmp_path}/b.txt', '--max-images=5')  # fmt: skip
    texts = (tmp_path / 'b.txt').read_text().split()
    table = read_code_file(str(tmp_path / 'c.npz')).codes
    assert [[int(c) for c in t] for t in texts] == table.tolist() and len(texts) == 5
    run(latents.main, 'decode', net, f'--codes={tmp_path}/c.npz', f'--outdir={tmp_path}/a')
    run(latents.main, 'decode', net, f'--bits={tmp_path}/b.txt', f'--outdir={tmp_path}/b', f'--sheet={tmp_path}/s.png')
    run(latents.main, 'decode', net, f'--bits={texts[2]}', f'--outdir={tmp_path}/c')
    first = np.asarray(Image.open(tmp_path / 'a' / '00000' / 'img00000002.png'))
    assert np.array_equal(first, np.asarray(Image.open(tmp_path / 'b' / '000002.png')))
    assert np.array_equal(first, np.asarray(Image.open(tmp_path / 'c' / '000000.png')))


def test_tree_tells_of_a_node(folder, tmp_path):
    table = read_code_file(str(folder / 'codes.npz')).codes
    common = [f'--network={folder}/net.safetensors', f'--codes={folder}/codes.npz', f'--sheet={tmp_path}/t.png']
    out = run(latents.main, 'tree', *common)
    counts = np.bincount(table[:, 0], minlength=8)
    for k in range(8):
        assert f'\n{k:>6}  {counts[k]:>7}  {counts[k] / 20:>6.1%}' in out
    shown = [int(count) for count in re.findall(r'^ *\d+ +(\d+) +[\d.]+%', out, re.MULTILINE)]
    assert shown == sorted(counts, reverse=True) and len(set(shown)) > 1
    top = int(counts.argmax())
    out = run(latents.main, 'tree', *common, f'--node={top}', '--shown=2')
    inside = np.bincount(table[table[:, 0] == top][:, 1], minlength=8)
    assert f'{(inside == 0).sum()} of 8 children have no image' in out
    leaf = ','.join(map(str, table[0]))
    run(latents.main, 'tree', *common, f'--node={leaf}')
    assert np.asarray(Image.open(tmp_path / 't.png')).shape[1] > 64


def test_nearest_cluster_swap_and_walk_draw(folder, tmp_path):
    table = torch.from_numpy(read_code_file(str(folder / 'codes.npz')).codes)
    of = f'--codes={folder}/codes.npz'
    net = f'--network={folder}/net.safetensors'
    out = run(latents.main, 'nearest', of, '--rows=3', '--num=4', f'--sheet={tmp_path}/n.png')
    want = [r for r in codes.nearest(table[3:4], table, 5)[0].tolist() if r != 3][:4]
    far = codes.common_prefix(table[3:4], table)[0]
    assert '#3 prefix: ' + ' '.join(f'#{r} ({far[r]} same)' for r in want) in out
    run(latents.main, 'nearest', of, f'--query-codes={folder}/codes.npz', '--rows=0-1', f'--sheet={tmp_path}/q.png')
    out = run(latents.main, 'cluster', of, '--depth=1', f'--sheet={tmp_path}/c.png', f'--dest={tmp_path}/c.npz')
    with np.load(tmp_path / 'c.npz') as found:
        assert np.array_equal(found['prefixes'][found['cluster'], 0], table[:, 0].numpy())
    majority = sum(Counter((i % 3) for i in range(20) if table[i, 0] == k).most_common(1)[0][1]
                   for k in set(table[:, 0].tolist()))  # fmt: skip
    assert f'purity {majority / 20:.1%}' in out
    run(latents.main, 'swap', net, of, '--coarse=0-2', '--fine=3,4', '--layers=1', f'--sheet={tmp_path}/s.png')
    assert np.asarray(Image.open(tmp_path / 's.png')).shape == (8 + 4 * (CAPTION + 72), 8 + 3 * 72, 3)
    run(latents.main, 'walk', net, of, '--rows=0,1,2', f'--sheet={tmp_path}/w.png')
    for name in 'nqcsw':
        assert np.asarray(Image.open(tmp_path / f'{name}.png')).std() > 0


def tile(path: Path, row: int, column: int) -> np.ndarray:
    """A picture [8, 8] of a sheet, uint8."""
    top, left = 8 + row * (CAPTION + 72) + CAPTION, 8 + column * 72
    return np.asarray(Image.open(path).convert('L'))[top : top + 64 : 8, left : left + 64 : 8]


@pytest.mark.parametrize('kind', ['class:3', 'lowres:2'])
def test_a_conditional_network_is_told_what_belongs_to_each_image(folder, tmp_path, kind):
    torch.manual_seed(1)
    net = DDN(8, 1, [8, 8], [2, 2], [4, 4], conditions=[kind])
    with torch.no_grad():
        for block in net.blocks:
            block.conv1.weight.mul_(1e5)  # a new block hardly listens
    snapshots.save_network(str(tmp_path / 'net.safetensors'), net)
    archive, labels = latents.ImageArchive(str(folder / 'data.zip')), torch.arange(20) % 3
    images = torch.stack([torch.from_numpy(archive.image(i)) for i in range(20)]) / 127.5 - 1
    by_class = kind == 'class:3'
    told = net.make_condition(labels=labels if by_class else None, images=None if by_class else {'lowres': images})
    of, at = f'--network={tmp_path}/net.safetensors', f'--codes={tmp_path}/c.npz'
    run(latents.main, 'encode', of, f'--data={folder}/data.zip', f'--dest={tmp_path}/c.npz', '--batch=7')
    table = torch.from_numpy(read_code_file(str(tmp_path / 'c.npz')).codes)
    assert torch.equal(table, net.encode(images, told))

    def is_of(picture, codes: torch.Tensor, told: torch.Tensor) -> bool:
        """Whether it is what they name, up to the rounding of sums in another order."""
        drawn = to_uint8(net.decode(codes, told)).numpy()[0, 0]
        return np.abs(drawn.astype(int) - np.asarray(picture).astype(int)).max() <= 1

    run(latents.main, 'decode', of, at, f'--outdir={tmp_path}/out')
    for i in (0, 7, 19):
        png = Image.open(tmp_path / 'out' / '00000' / f'img{i:08d}.png')
        assert is_of(png, table[i : i + 1], told[i : i + 1])
        assert not is_of(png, table[i : i + 1], told[i - 2 : i - 1] if i else told[2:3])  # what others are told
    end = next(i for i in range(5, 20) if (table[i] != table[4]).sum() > 1 and (told[i] != told[4]).any())
    run(latents.main, 'walk', of, at, f'--rows=4,{end}', f'--sheet={tmp_path}/w.png')
    steps = codes.path(table[4], table[end])
    for i in range(len(steps)):
        between = torch.lerp(told[4:5], told[end : end + 1], i / (len(steps) - 1))
        assert is_of(tile(tmp_path / 'w.png', 0, i), steps[i : i + 1], between)
    same = torch.stack([table[4], table[4]])
    file = CodeFile(same.numpy(), np.array(archive.names())[[4, 5]], labels[4:6].numpy(), None, str(archive.path))
    write_code_file(str(tmp_path / 'same.npz'), file)  # of two images whose codes are equal, what they are told is not
    run(latents.main, 'walk', of, f'--codes={tmp_path}/same.npz', '--frames=3', f'--sheet={tmp_path}/w.png')
    for row in range(2):
        for i in range(3):
            assert is_of(tile(tmp_path / 'w.png', row, i), same[:1], torch.lerp(told[4:5], told[5:6], i / 2))
    run(latents.main, 'swap', of, at, '--coarse=1,5', '--fine=3,8', '--layers=2', f'--sheet={tmp_path}/s.png')
    mixed = torch.cat([table[5:6, :2], table[8:9, 2:]], 1)
    assert is_of(tile(tmp_path / 's.png', 2, 2), mixed, told[5:6])
    assert is_of(tile(tmp_path / 's.png', 0, 2), table[8:9], told[8:9])
    if not by_class:  # pictures that are given for each image go with their images
        given, own = f'--condition-image={tmp_path}/given.zip', torch.empty(20, 1, 8, 8)
        swap = ['swap', of, at, given, '--coarse=1,5', '--fine=3,8', '--layers=2', f'--sheet={tmp_path}/s.png']
        write_zip(tmp_path / 'given.zip', 20, (1, 8, 8), seed=9)
        for i in range(20):
            own[i] = torch.from_numpy(latents.ImageArchive(str(tmp_path / 'given.zip')).image(i)) / 127.5 - 1
        own = net.make_condition(images={'lowres': own})
        run(latents.main, *swap)
        assert is_of(tile(tmp_path / 's.png', 2, 2), mixed, own[5:6])
        run(latents.main, 'walk', of, at, given, f'--rows=4,{end}', f'--sheet={tmp_path}/w.png')
        assert is_of(tile(tmp_path / 'w.png', 0, len(steps) - 1), steps[-1:], own[end : end + 1])

    # What the command line says counts for all.
    save_png(to_image(archive.image(2)), str(tmp_path / 'two.png'))
    option = '--class=2' if by_class else f'--condition-image={tmp_path}/two.png'
    run(latents.main, 'decode', of, at, option, f'--outdir={tmp_path}/two')
    assert is_of(Image.open(tmp_path / 'two' / '00000' / 'img00000006.png'), table[6:7], told[2:3])
    k = int(table[:, 0].mode().values)
    out = run(latents.main, 'tree', of, at, option, f'--node={k}', f'--sheet={tmp_path}/t.png')
    node = to_uint8(net.branches(table[:1, :0], told[2:3]))[0, k, 0].numpy()  # [4, 4]
    assert np.array_equal(tile(tmp_path / 't.png', 0, 0), node.repeat(2, 0).repeat(2, 1))
    under = table[:, 0] == k
    inside = table[under & (labels == 2)] if by_class else table[under]
    assert len(inside) < under.sum() or not by_class
    for child, count in enumerate(inside[:, 1].bincount(minlength=4)):
        assert f'\n{child:>6}  {count:>7}' in out
    errors = run(latents.main, 'tree', of, at, f'--sheet={tmp_path}/t.png', expect=1)
    assert ('give --class=3' if by_class else 'give --condition-image') in errors


def test_codes_alone_of_a_conditional_network_say_what_is_missing(folder, tmp_path):
    snapshots.save_network(str(tmp_path / 'net.safetensors'), DDN(8, 1, [8], [3], [4], conditions=['class:3']))
    write_codes(str(tmp_path / 'c.txt'), np.zeros((2, 3), np.int64))
    args = ['decode', f'--network={tmp_path}/net.safetensors', f'--codes={tmp_path}/c.txt', f'--outdir={tmp_path}/out']
    assert 'give --class' in run(latents.main, *args, expect=1)
    run(latents.main, *args, '--class=1')
    assert '0..2, not 3' in run(latents.main, *args, '--class=3', expect=1)


BAD = {
    'dest': (['encode', 'NET', '--data=DIR/data.zip', '--dest=x.txt'], '.npz'),
    'row': (['swap', 'NET', 'CODES', '--coarse=99', '--sheet=x.png'], '--coarse: '),
    'one': (['walk', 'NET', 'CODES', '--rows=1', '--sheet=x.png'], 'two images'),
    'node': (['tree', 'NET', 'CODES', '--node=9', '--sheet=x.png'], 'layer 0'),
    'deep': (['tree', 'NET', 'CODES', '--node=1,1,1,1', '--sheet=x.png'], '3 or fewer'),
    'depth': (['cluster', 'CODES', '--depth=4', '--sheet=x.png'], '3 layers'),
    'codes': (['cluster', '--codes=nowhere.npz', '--sheet=x.png'], 'nowhere.npz'),
    'other': (['walk', '--network=DIR/bits.safetensors', 'CODES', '--sheet=x.png'], '[B, 6]'),
    'both': (['decode', 'NET', '--outdir=x'], 'give either --codes or --bits'),
    'bits': (['decode', 'NET', '--bits=01', '--outdir=x'], '9 characters'),
    'k': (['decode', '--network=DIR/single.safetensors', '--bits=01', '--outdir=x'], 'K = 3'),
    'rows': (['nearest', '--codes=DIR/few.txt', '--data=DIR/data.zip', '--sheet=x.png'], '--rows: '),
    'fine': (['swap', 'NET', '--codes=DIR/few.txt', '--coarse=0', '--sheet=x.png'], 'few.txt holds rows 0 to 2, not 8'),
    'empty': (['cluster', '--codes=DIR/empty.txt', '--sheet=x.png'], 'empty.txt holds no codes'),
    'no bits': (['decode', 'NET', '--bits=DIR/empty.txt', '--outdir=x'], 'empty.txt: neither a string of 0 and 1 nor'),
    'missing': (['decode', 'NET', '--bits=missing.txt', '--outdir=x'], 'missing.txt: neither a string of 0 and 1 nor'),
    'shape': (['encode', 'NET', '--data=DIR/larger.zip', '--dest=x.npz'], 'see dataset_tool.py --resolution'),
    'device': (['decode', 'NET', 'CODES', '--device=cuda', '--outdir=x'], 'device cuda was asked for'),
    'layers': (['swap', 'NET', 'CODES', '--layers=4', '--sheet=x.png'], '3 layers'),
}


@pytest.mark.parametrize('args, words', BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_line(folder, args, words):
    known = {'NET': f'--network={folder}/net.safetensors', 'CODES': f'--codes={folder}/codes.npz'}
    args = [known.get(a, a.replace('DIR', str(folder))) for a in args]
    errors = [line for line in run(latents.main, *args, expect=1).splitlines() if line.startswith('Error:')]
    assert len(errors) == 1 and words in errors[0], errors


def test_decode_does_not_replace_the_originals(folder, tmp_path):
    net, at, codes_at = f'--network={folder}/net.safetensors', tmp_path / '1.png', f'{tmp_path}/c.npz'
    save_png(Image.new('L', (8, 8), 9), str(at))
    before = at.read_bytes()
    run(latents.main, 'encode', net, f'--data={tmp_path}', f'--dest={codes_at}')
    out = run(latents.main, 'decode', net, f'--codes={codes_at}', f'--outdir={tmp_path}', expect=1)
    assert 'would replace an image of' in out and at.read_bytes() == before
    file = read_code_file(codes_at)
    write_code_file(codes_at, file._replace(data=None))  # nobody says where they are
    run(latents.main, 'decode', net, f'--codes={codes_at}', f'--outdir={tmp_path / "new"}')
    write_code_file(codes_at, file)
    data = f'--data={folder}/data.zip'
    out = run(latents.main, 'decode', net, data, f'--codes={codes_at}', f'--outdir={tmp_path}', expect=1)
    assert 'would replace an image of' in out and at.read_bytes() == before


def test_what_cannot_be_written_is_said_before_the_work(folder, tmp_path, monkeypatch):
    (tmp_path / 'afile').touch()
    encode = ['encode', f'--network={folder}/net.safetensors', f'--data={folder}/data.zip']
    decode = ['decode', f'--network={folder}/net.safetensors', f'--codes={folder}/codes.npz']
    for network in (RecurrentDDN, DDN):
        monkeypatch.setattr(network, 'encode', None)
        monkeypatch.setattr(network, 'decode', None)
    for args, option in (
        ([*encode, f'--dest={tmp_path}/afile/c.npz'], '--dest'),
        ([*encode, '--dest=/proc/nope/c.npz'], '--dest'),
        ([*encode, f'--dest={tmp_path}/c.npz', f'--bits={tmp_path}/afile/b.txt'], '--bits'),
        ([*decode, f'--outdir={tmp_path}/o', f'--sheet={tmp_path}/afile/s.png'], '--sheet'),
        ([*decode, f'--outdir={tmp_path}/afile'], '--outdir'),
    ):
        out = run(latents.main, *args, expect=1)
        assert f'{option}=' in out and 'cannot be written' in out and 'give another place' in out
    sheet = f'--sheet={tmp_path}/o/00000/img00000003.png'
    assert 'would replace another file' in run(latents.main, *decode, f'--outdir={tmp_path}/o', sheet, expect=1)
    snapshots.save_network(str(tmp_path / 'six.safetensors'), DDN(8, 1, [8], [2], [6]))
    args = [f'--network={tmp_path}/six.safetensors', f'--dest={tmp_path}/c.npz', f'--bits={tmp_path}/b.txt']
    assert 'layer 0 has K = 6' in run(latents.main, 'encode', encode[2], *args, expect=1)


@pytest.mark.parametrize('name', ['dest', 'row', 'one', 'deep', 'depth', 'rows', 'shape', 'layers'])
def test_what_is_refused_leaves_no_folder_behind(folder, tmp_path, name):
    args, words = BAD[name]
    args = [a.replace('=x', f'={tmp_path}/new/folder/x') for a in args]
    test_bad_input_is_one_line(folder, args, words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('args', ['tree NET CODES --node=3-1', 'nearest CODES --rows=0,9-5', 'tree NET CODES --node='])
def test_an_empty_range_is_no_range(folder, args):
    known = {'NET': f'--network={folder}/net.safetensors', 'CODES': f'--codes={folder}/codes.npz'}
    out = run(latents.main, *(known.get(a, a) for a in args.split()), '--sheet=x.png', expect=2)
    assert 'did you mean' in out or 'is not a number' in out


def test_a_reader_that_has_gone_ends_it_quietly(folder, tmp_path):
    args = ['tree', f'--network={folder}/net.safetensors', f'--codes={folder}/codes.npz', f'--sheet={tmp_path}/t.png']
    read, write = os.pipe()
    os.close(read)
    with open(write, 'wb') as gone:
        done = forks.run('latents.py', *args, stdout=gone)
    assert done.returncode == 1 and done.stderr == ''


def test_files_may_go_into_a_new_folder(folder, tmp_path):
    net, of = f'--network={folder}/bits.safetensors', f'--codes={tmp_path}/a/c.npz'
    data = f'--data={folder}/data.zip'
    run(latents.main, 'encode', net, data, f'--dest={tmp_path}/a/c.npz', f'--bits={tmp_path}/b/c')
    run(latents.main, 'cluster', of, f'--dest={tmp_path}/c/c.npz', f'--sheet={tmp_path}/d/c.png')
    run(latents.main, 'decode', net, of, f'--outdir={tmp_path}/e', f'--sheet={tmp_path}/f/c.png')
    assert {p.parent.name for p in tmp_path.rglob('c*')} >= set('abcdf')


def test_names_cannot_lead_out_of_the_folder(folder, tmp_path):
    write_code_file(str(tmp_path / 'c.npz'), CodeFile(np.zeros((1, 3), int), np.array(['../../evil.png'])))
    out = run(latents.main, 'decode', f'--network={folder}/net.safetensors', f'--codes={tmp_path}/c.npz',
              f'--outdir={tmp_path}/a/b', expect=1)  # fmt: skip
    assert 'outside' in out and not (tmp_path / 'evil.png').exists()


@pytest.mark.parametrize('K, side', [(8, 3), (2, 2), (3, 2), (9, 4), (15, 4), (16, 5)])
def test_cells_of_a_grid(K, side):
    cells = latent_tree.cells(K)
    assert latent_tree.side(K) == side and cells[0] == (0, 0)
    assert len(set(cells)) == K and (side // 2, side // 2) not in cells
    assert all(0 <= r < side and 0 <= c < side for r, c in cells)


@pytest.mark.parametrize('name', ['net', 'single'])
def test_the_tree_grows_every_image(folder, name):
    path = str(folder / f'{name}.safetensors')
    picture, net = latent_tree.tree_of(path, None, None, 8)
    levels = latent_tree.grow(net, net.num_layers)
    paths = torch.cartesian_prod(*(torch.arange(k) for k in net.num_nodes))
    decoded = ((net.decode(paths) + 1) * 127.5).round().clamp(0, 255).numpy()
    assert len(levels[-1]) == len(paths) and np.abs(levels[-1].astype(float) - decoded).max() <= 1
    mean = ((net.decode(paths).mean(0) + 1) * 127.5).clamp(0, 255).numpy()
    assert np.abs(levels[0][0].astype(float) - mean).max() <= 1
    shapes = [len(level) for level in levels]
    assert shapes == [1, *np.cumprod(net.num_nodes).tolist()]
    pixels = np.asarray(picture).reshape(-1, 3)
    blue = (pixels == latent_tree.COLORS[1]).all(1).sum()
    green = (pixels == latent_tree.COLORS[2]).all(1).sum()
    assert blue > 0 and (green > 0) == (net.num_layers > 2)  # the last layer has no border


def test_the_figure_and_the_film(folder, tmp_path):
    run_dir = tmp_path / 'run'
    run_dir.mkdir()
    for n in (10, 20):
        (run_dir / f'network-snapshot-{n:09d}.safetensors').write_bytes((folder / 'single.safetensors').read_bytes())
    run(latent_tree.main, f'--network={folder}/single.safetensors', f'--out={tmp_path}/t.png', '--leaf=8',
        f'--run={run_dir}', f'--film={tmp_path}/t.gif', '--width=100')  # fmt: skip
    with Image.open(tmp_path / 't.gif') as film:
        assert film.n_frames in (1, 2) and film.width == 100  # two frames alike may be one, shown longer
    network = f'--network={folder}/bits.safetensors'
    assert '--depth=9' in run(latent_tree.main, network, '--depth=9', f'--out={tmp_path}/x.png', expect=1)
    assert 'no network-snapshot' in run(latent_tree.main, f'--run={tmp_path}', f'--film={tmp_path}/y.gif', expect=1)


def test_table_3_on_codes_that_know_the_class(tmp_path):
    """Class = first code: all methods find it; the paper's row stands beside a network of its size."""
    table = random_codes(300, 3, 8)
    for name, rows in (('train', table[:200]), ('test', table[200:])):
        file = CodeFile(rows.numpy(), None, rows[:, 0].numpy(), np.array([8, 8, 8]))
        write_code_file(str(tmp_path / f'{name}.npz'), file)
    out = run(mnist_tree.main, f'--train={tmp_path}/train.npz', f'--test={tmp_path}/test.npz', '--sizes=128,200',
              '--held-out=0', '--draws=2', f'--outdir={tmp_path}/out')  # fmt: skip
    out = unpadded(out)
    assert '| 8 | 3 | tree | 100.0 | 100.0 |' in out and '| 8 | 3 | logistic |' in out
    assert '| 8 | 3 | paper (tree) | 69.0 | - |' in out and (tmp_path / 'out' / 'mnist_tree.md').exists()
    out = run(mnist_tree.main, f'--train={tmp_path}/train.npz', f'--test={tmp_path}/test.npz', '--held-out=0', expect=1)
    assert 'Error: --sizes=1024: there are 200' in out
    held_out = [f'--train={tmp_path}/train.npz', '--held-out=50']
    run(mnist_tree.main, *held_out, '--sizes=128,150', f'--outdir={tmp_path}/h')
    assert '# Table 3: accuracy on the held-out training images' in (tmp_path / 'h' / 'mnist_tree.md').read_text()
    assert 'there are 150' in run(mnist_tree.main, *held_out, '--sizes=200', expect=1)  # those that vote
    assert 'there is nothing to classify' in run(mnist_tree.main, held_out[0], '--held-out=0', expect=1)
