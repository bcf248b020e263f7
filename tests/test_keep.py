"""generate.py --keep, and parts of pictures in latents.py: which codes stay, and what is refused."""

import numpy as np
import pytest
import torch
from conftest import invoke, write_zip

import generate
import latents
from cli.code_files import CodeFile, write_code_file, write_codes
from cli.kept_codes import KeptCodes
from cli.regions import Rectangle, inside
from ddn_networks import DDN, codes, snapshots
from dnnlib.archives import ImageArchive
from dnnlib.images import to_float

GRIDS = [1, 1, (2, 4), (4, 2)]
CELLS = [1, 1, 8, 8]


def make(**kwargs) -> DDN:
    torch.manual_seed(0)
    net = DDN((8, 16), 1, [8, 8], [2, 2], [4, 5], grids=GRIDS, prior_width=8, **kwargs)
    for module in [*net.blocks, *net.prior]:
        for param in module.parameters():
            torch.nn.init.normal_(param, std=0.3)
    return net.eval()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('keep')
    net = make()
    snapshots.save_network(folder / 'net.safetensors', net)
    snapshots.save_network(folder / 'whole.safetensors', DDN((8, 16), 1, [8], [3], [4]).eval())
    write_zip(folder / 'data.zip', 3, (1, 8, 16), labels=False)
    table = net.sample(4, seed=100)[1]
    write_codes(str(folder / 'codes.txt'), table.numpy())
    names = np.array(['a/1.png', 'a/2.png', 'b/1.png', 'b/2.png'])
    write_code_file(str(folder / 'codes.npz'), CodeFile(table.numpy(), names, data=str(folder / 'data.zip')))
    return folder


def kept(folder, *options) -> tuple[np.ndarray, list[str]]:
    """The codes that generate.py makes of two seeds, and the files that it writes."""
    out, file = folder / 'out', folder / 'made.npy'
    for path in out.glob('**/*.png'):
        path.unlink()
    net = f'--network={folder / "net.safetensors"}'
    invoke(generate.main, net, f'--outdir={out}', '--device=cpu', '--seeds=5,6', f'--save-codes={file}', *options)
    return np.load(file), sorted(str(path.relative_to(out)) for path in out.glob('**/*.png'))


# Regions.


@pytest.mark.parametrize('size', [(8, 16), (7, 5), (9, 9)])
def test_cells_that_a_region_touches_by_their_pixels(size):
    """A cell of a grid covers the same part of the picture at every size: where the sides differ, parts of pixels."""
    H, W = size
    grids = [(1, 1), (2, 2), (4, 2), (1, 3), (H, W)]
    rng = torch.Generator().manual_seed(0)
    for _ in range(20):
        pixels = torch.rand(H, W, generator=rng) < 0.1
        want = []
        for gh, gw in grids:
            for r in range(gh):
                for c in range(gw):
                    rows = [y for y in range(H) if (y + 1) * gh > r * H and y * gh < (r + 1) * H]
                    columns = [x for x in range(W) if (x + 1) * gw > c * W and x * gw < (c + 1) * W]
                    want.append(any(bool(pixels[y, x]) for y in rows for x in columns))
        assert codes.touching(pixels, grids).tolist() == want


def test_cells_inside_a_region():
    net = make()
    left = inside([Rectangle(0, 0, 8, 8)], net)
    want = [False, False, *[True, True, False, False] * 2, *[True, False] * 4]
    assert left.tolist() == want
    assert inside([Rectangle(0, 0, 8, 8), Rectangle(8, 0, 8, 8)], net).all()
    assert inside([Rectangle(4, 0, 4, 4)], net).nonzero()[:, 0].tolist() == [3]
    with pytest.raises(ValueError, match='--region: no cell lies wholly in it; the smallest are 4 by 4 pixels'):
        inside([Rectangle(1, 1, 4, 4)], net)


# Which codes stay.


LEFT = [True, True, *[True, True, False, False] * 2, *[True, False] * 4]


@pytest.mark.parametrize('source', ['seed:100', 'codes.txt:0', 'codes.npz:0'])
@pytest.mark.parametrize('part, stays', [
    (['--keep-layers=0-2'], [True] * 10 + [False] * 8),
    (['--keep-region=0,0,8,8'], LEFT),
    (['--keep-region=1,1,1,7', '--keep-region=5,0,1,8'], LEFT),
    (['--redraw-region=8,0,8,8'], LEFT),
    (['--keep-layers=2,3', '--keep-region=0,0,16,8', '--redraw-region=8,0,8,8'], [False] * 2 + LEFT[2:]),
])  # fmt: skip
def test_a_part_stays_and_the_rest_is_that_of_the_seed(folder, source, part, stays):
    source = source if source.startswith('seed') else folder / source
    made, files = kept(folder, f'--keep={source}', *part)
    latent = make().sample(1, seed=100)[1][0]
    partial = torch.where(torch.tensor(stays), latent, -1)
    assert np.array_equal(made, make().sample(2, seed=5, codes=partial[None])[1].numpy())
    assert files == ['000005.png', '000006.png']


def test_pictures_are_encoded(folder):
    net = make()
    images = to_float(torch.from_numpy(ImageArchive(str(folder / 'data.zip')).images(range(3), (1, 8, 16))))
    for options, how in (([], {}), (['--refine=1'], {'refine': 1}), (['--beam=3'], {'beam': 3})):
        made, files = kept(folder, f'--keep={folder / "data.zip"}', '--keep-layers=0-2', *options)
        assert np.array_equal(made[::2, :10], net.encode(images, **how)[:, :10].numpy())
        assert np.array_equal(made[::2, :10], made[1::2, :10]) and len(made) == 6
        assert files[0] == '00000/img00000000-000005.png' and len(files) == 6
    made, files = kept(folder, f'--keep={folder / "data.zip"}', '--keep-layers=0-2', '--max-images=2')
    assert len(made) == len(files) == 4


def test_several_latents_and_seeds(folder):
    made, files = kept(folder, '--keep=seed:100-102', '--keep-layers=0')
    latents_ = make().sample(3, seed=100)[1]
    assert np.array_equal(made[:, 0].reshape(3, 2), latents_[:, :1].expand(3, 2).numpy())
    assert files[1:3] == ['seed000100-000006.png', 'seed000101-000005.png']
    _, files = kept(folder, f'--keep={folder / "codes.npz"}:1,3', '--keep-layers=0', f'--grid={folder / "grid.png"}')
    assert files == ['a/2-000005.png', 'a/2-000006.png', 'b/2-000005.png', 'b/2-000006.png']
    _, files = kept(folder, f'--keep={folder / "codes.txt"}:1-2', '--keep-layers=0')
    assert files[0] == 'row000001-000005.png'


def test_a_file_may_hold_partial_codes(folder):
    net = make()
    partial = torch.where(torch.arange(18) % 3 == 0, net.sample(1, seed=8)[1], -1)
    for name in ('partial.txt', 'partial.npy', 'partial.npz'):
        write_codes(str(folder / name), partial.numpy())
        made, _ = kept(folder, f'--keep={folder / name}', f'--grid={folder / "grid.png"}')
        assert np.array_equal(made, net.sample(2, seed=5, codes=partial)[1].numpy())
        out = invoke(generate.main, f'--network={folder / "net.safetensors"}', f'--outdir={folder}',
                     f'--codes={folder / name}', expect=1)  # fmt: skip
        assert 'holds -1' in out


def test_uniform_choices_and_guides_answer_what_is_free(folder):
    net = make()
    made, _ = kept(folder, '--keep=seed:100', '--keep-layers=0-2', '--uniform')
    latent = net.sample(1, seed=100, uniform=True)[1][0]
    partial = torch.cat([latent[:10], torch.full((8,), -1)])[None]
    assert np.array_equal(made, net.sample(2, seed=5, uniform=True, codes=partial)[1].numpy())
    guided, _ = kept(folder, '--keep=seed:100', '--keep-layers=0-2', '--uniform', f'--guide=l2:{folder / "data.zip"}')
    assert (guided[:, :10] == latent[:10].numpy()).all() and len(guided) == 6
    assert (guided[::3, 10:] != made[:, 10:]).any()


def test_a_conditional_network_encodes_and_draws_by_one_condition(folder):
    net = make(conditions=['class:3'])
    snapshots.save_network(folder / 'classes.safetensors', net)
    classes = net.make_condition(torch.tensor([1, 2]))
    images = to_float(torch.from_numpy(ImageArchive(str(folder / 'data.zip')).images([0], (1, 8, 16))))
    invoke(generate.main, f'--network={folder / "classes.safetensors"}', f'--outdir={folder / "classes"}', '--seeds=5',
           '--class=1,2', f'--keep={folder / "data.zip"}', '--max-images=1', '--keep-layers=0-1', '--device=cpu',
           f'--save-codes={folder / "made.npy"}', f'--grid={folder / "grid.png"}')  # fmt: skip
    made = np.load(folder / 'made.npy')
    assert np.array_equal(made[:, :2], net.encode(images.repeat(2, 1, 1, 1), classes)[:, :2].numpy())
    kept_codes = KeptCodes(net, 'seed:3', [0])
    assert torch.equal(kept_codes.of([0, 0], classes)[:, :1], net.sample(seeds=[3, 3], condition=classes)[1][:, :1])


@pytest.mark.parametrize('options, says', [
    (['--keep=seed:1'], 'keeps all codes and leaves nothing to draw: give other --keep-layers, --keep-region'),
    (['--keep=seed:1', '--keep-region=0,0,1,1', '--redraw-region=0,0,1,1'], 'leave nothing that is kept'),
    (['--keep=seed:1', '--keep-layers=2-4'], '--keep-layers: this network has layers 0-3, not 4'),
    (['--keep=seed:1', '--keep-region=9,0,8,8'], '--keep-region=9,0,8,8 is not inside the picture, which is 16 pixels'),
    (['--keep=seed:1', '--redraw-region=0,1,8,8'], '--redraw-region=0,1,8,8 is not inside the picture'),
    (['--keep=seed:x', '--keep-layers=0'], "--keep=seed:x: 'x' is not a number"),
    (['--keep=CODES:4', '--keep-layers=0'], 'codes.npz holds rows 0 to 3, not 4'),
    (['--keep=short.txt', '--keep-layers=0'], '--keep=short.txt: codes of this network are integers [B, 18], not'),
    (['--keep=nowhere.png', '--keep-layers=0'], 'nowhere.png: no such file'),
    (['--keep-layers=0'], '--keep-layers needs --keep, which names the latents'),
    (['--redraw-region=0,0,8,8'], '--redraw-region needs --keep'),
    (['--keep=seed:1', '--codes=CODES'], '--keep names codes or pictures itself: leave out --codes'),
    (['--keep=seed:1', '--keep-layers=0', '--refine=1'], '--refine needs --reconstruct or --keep=PICTURE'),
    (['--keep=CODES:1', '--keep-layers=0', '--beam=2'], '--beam needs --guide'),
    (['--refine=1'], '--refine needs --reconstruct or --keep=PICTURE'),
    (['--max-images=1'], '--max-images needs --reconstruct or --keep'),
])  # fmt: skip
def test_what_makes_no_sense_is_one_line(folder, options, says, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / 'short.txt').write_text('0 1 2\n')
    options = [option.replace('CODES', 'codes.npz') for option in options]
    out = invoke(generate.main, '--network=net.safetensors', '--outdir=refused', *options, expect=1)
    assert says in out and len(out.strip().splitlines()) == 1
    assert not (folder / 'refused').exists()


def test_a_network_without_cells_keeps_layers(folder):
    net, out = f'--network={folder / "whole.safetensors"}', f'--outdir={folder / "whole"}'
    invoke(generate.main, net, out, '--seeds=0,1', '--keep=seed:1', '--keep-layers=0', '--device=cpu')
    said = invoke(generate.main, net, out, '--keep=seed:1', '--keep-region=0,0,8,8', expect=1)
    assert 'give other --keep-layers, as this network has no cells' in said


@pytest.mark.parametrize('text', ['1,2,3', '0,0,0,4', '0,0,4,00', '-1,0,2,2', 'a,b,c,d',
                                   '1,2,3,4,5', '', '0,0,9999999,1'])  # fmt: skip
def test_what_is_no_region(folder, text):
    for command in (['--keep=seed:1', f'--keep-region={text}'], ['--keep=seed:1', f'--redraw-region={text}']):
        out = invoke(generate.main, f'--network={folder}', f'--outdir={folder}', *command, expect=2)
        assert 'is not X,Y,W,H in pixels; give for example 0,16,32,8' in out


# latents.py.


def run(folder, command: str, *options, expect: int = 0) -> str:
    common = [f'--network={folder / "net.safetensors"}', '--device=cpu', f'--codes={folder / "codes.npz"}']
    return invoke(latents.main, command, *common, f'--sheet={folder / "sheet.png"}', *options, expect=expect)


@pytest.fixture
def decoded(monkeypatch):
    """The tables that latents.py decodes."""
    tables, decode = [], latents.decode
    monkeypatch.setattr(latents, 'decode', lambda net, table, given: tables.append(table) or decode(net, table, given))
    return tables


def test_swap_by_region(folder, decoded):
    table = torch.from_numpy(np.load(folder / 'codes.npz')['codes']).long()
    swap = ['--coarse=0,1', '--fine=2,3', '--region=8,0,8,8']
    right = ~torch.tensor(LEFT)
    for layers, part in ((0, right), (3, right & (torch.arange(18) >= 10))):
        run(folder, 'swap', *swap, *([f'--layers={layers}'] if layers else []))
        mixed = decoded.pop()[4:].view(2, 2, 18)
        for i in range(2):
            for j in range(2):
                assert torch.equal(mixed[i, j], torch.where(part, table[2 + j], table[i]))
    out = run(folder, 'swap', *swap[:2], '--region=8,0,9,8', expect=1)
    assert '--region=8,0,9,8 is not inside the picture' in out


def test_walk_by_region(folder, decoded):
    table = torch.from_numpy(np.load(folder / 'codes.npz')['codes']).long()
    run(folder, 'walk', '--rows=0,1,3', '--region=8,0,8,8', '--frames=30')
    right = ~torch.tensor(LEFT)
    for start, end, steps in ((0, 1, decoded[0]), (0, 1, decoded[1]), (1, 3, decoded[2])):
        assert torch.equal(steps[0], table[start])
        assert torch.equal(steps[-1], torch.where(right, table[end], table[start]))
        assert ((steps[1:] != steps[:-1]).sum(1) == 1).all()


def test_a_cell_in_its_place(folder):
    out = run(folder, 'cell', '--row=1', '--layer=2', '--cell=1,3')
    own = np.load(folder / 'codes.npz')['codes'][1, 2 + 7]
    assert f'cell 1,3 of layer 2, 2x4 cells: node {own} of 5' in out
    run(folder, 'cell', '--layer=0', '--cell=0,0')
    for options, says in [
        (['--layer=4', '--cell=0,0'], '--layer=4: this network has layers 0-3'),
        (['--layer=2', '--cell=2,0'], '--cell=2,0: layer 2 has 2 rows and 4 columns of cells, from 0,0'),
        (['--layer=2', '--cell=1'], '--cell=1: layer 2 has 2 rows and 4 columns of cells'),
        (['--layer=2', '--cell=0,0', '--row=4'], '--row: '),
    ]:
        assert says in run(folder, 'cell', *options, expect=1)


def test_encode_with_a_beam_and_refinement(folder):
    net, data = make(), folder / 'data.zip'
    images = to_float(torch.from_numpy(ImageArchive(str(data)).images(range(3), (1, 8, 16))))
    for options, how in ((['--beam=3'], {'beam': 3}), (['--refine=2'], {'refine': 2})):
        file = folder / 'encoded.npz'
        invoke(latents.main, 'encode', f'--network={folder / "net.safetensors"}', '--device=cpu', f'--data={data}',
               f'--dest={file}', *options)  # fmt: skip
        assert np.array_equal(np.load(file)['codes'], net.encode(images, **how).numpy())
        made = folder / 'made.npy'
        invoke(generate.main, f'--network={folder / "net.safetensors"}', '--device=cpu', f'--outdir={folder / "r"}',
               f'--reconstruct={data}', f'--save-codes={made}', *options)  # fmt: skip
        assert np.array_equal(np.load(made), net.encode(images, **how).numpy())
