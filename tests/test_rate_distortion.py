"""experiments/rate_distortion.py, rate_choices.py and seams.py: curves of a small network, steps between tiles."""

import io
import json

import numpy as np
import pytest
import torch
from conftest import invoke, write_zip
from PIL import Image
from test_codec import images, network

from ddn_networks import DDN, snapshots
from ddn_networks.code_rates import Rate, payload_bits
from ddn_networks.code_streams import Codec
from experiments import curves, rate_choices, rate_distortion, seams

pytest.importorskip('constriction')


@pytest.mark.parametrize('with_finisher', [False, True])
def test_rows_of_the_codec_are_of_the_same_files_without_and_with_the_finisher(with_finisher):
    torch.manual_seed(0)
    net = DDN(16, 1, [8, 8], [1, 1], [5, 5], prior_width=8, finisher_width=4 * with_finisher).eval()
    x = images(3, size=(16, 16))
    if with_finisher:
        for parameter in net.finisher.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    measure = rate_distortion.Measure(x, None)
    rows = list(rate_distortion.of_codec(Codec(net), x, measure))
    plain = [row for row in rows if row['codec'] == 'codec']
    other = [row for row in rows if row['codec'] == rate_distortion.FINISHED]
    assert len(plain) == net.num_layers and len(other) == net.num_layers * with_finisher
    expected = measure(net.decode(net.encode(x), finish=False))
    assert plain[-1]['PSNR'] == pytest.approx(expected['PSNR'], abs=1e-3)
    if with_finisher:
        assert [row['bytes'] for row in plain] == [row['bytes'] for row in other]
        expected = measure(net.decode(net.encode(x)))
        assert other[-1]['PSNR'] == pytest.approx(expected['PSNR'], abs=1e-3) != plain[-1]['PSNR']
    assert rate_distortion.names(rows) == ['codec', rate_distortion.FINISHED][: 1 + with_finisher]


def test_files_that_are_all_of_a_length_between_those_compared_are_a_report():
    rows = [{'codec': 'codec', 'setting': f'{i} layers', 'bytes': b, 'PSNR': 10.0 + i} for i, b in ((1, 17), (2, 18))]
    facts = {'num': 1, 'network': 'x', 'network_bytes': 1, 'model': 'prior'}
    assert rate_distortion.report(rows, facts).splitlines()[-1].split() == '| codec | 2 layers | 18 | 12 |'.split()
    assert rate_distortion.plot(rows, 'PSNR').size == (curves.WIDTH, curves.HEIGHT)


def test_where_one_curve_is_better_than_another_is_said_in_bytes():
    def curve(name, *points):
        return [{'codec': name, 'bytes': b, 'PSNR': v, 'LPIPS': v} for b, v in points]

    rows = curve('a', (10, 20.0), (1000, 24.0)) + curve('b', (10.5, 19.0), (100, 22.0), (2000, 30.0))
    assert rate_distortion.better(rows, 'a', 'b', 'PSNR', 'bytes') == '11 to 99 (of 11 to 1,000)'
    assert rate_distortion.better(rows, 'a', 'b', 'LPIPS', 'bytes') == '101 to 1,000 (of 11 to 1,000)'
    rows = curve('a', (10, 20.0), (100, 22.0)) + curve('b', (10, 20.0), (31, 30.0), (60, 10.0), (100, 22.0))
    assert rate_distortion.better(rows, 'b', 'a', 'PSNR', 'bytes') == '11 to 41 (of 10 to 100)'
    rows = curve('a', (10, 20.0), (20, 21.0)) + curve('b', (21, 20.0), (30, 30.0))
    assert rate_distortion.better(rows, 'a', 'b', 'PSNR', 'bytes') == 'no bytes in common'


@pytest.mark.parametrize('channels', [1, 3])
def test_coded_bytes_are_those_without_the_headers_of_a_file(channels):
    x = torch.rand(1, channels, 40, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    measure = rate_distortion.Measure(x, None)
    headers = {}
    for name, how in rate_distortion.PEERS.items():
        for quality in (10, 90):
            (data,) = rate_distortion.saved(measure.images, {**how, 'quality': quality})
            header = len(data) - rate_distortion.coded_bytes(data)
            if name == 'JPEG':  # the header of the scan: its length, a byte and two for each channel, three bytes
                assert header == data.rindex(b'\xff\xda') + 2 + 2 + 1 + 2 * channels + 3 + len(b'\xff\xd9')
            headers.setdefault(name, []).append(header)
    assert headers['WebP'][0] // 2 == headers['WebP'][1] // 2 == 15  # RIFF 12, chunk 8, frame 10; a byte to fill up
    assert len(set(headers['AVIF'])) == 1 and headers['AVIF'][0] > 200  # the same boxes whatever the quality
    (data,) = rate_distortion.saved(measure.images, {'format': 'PNG'})
    assert len(data) - rate_distortion.coded_bytes(data) == 8 + 25 + 12 + 12  # signature, IHDR, of IDAT, IEND
    assert rate_distortion.coded_bytes(data) == data.index(b'IEND') - 8 - data.index(b'IDAT') - 4


def test_files_of_one_quality_are_measured_once_and_as_they_are(monkeypatch):
    x = images(2, size=(16, 16))
    measure, opened = rate_distortion.Measure(x, None), []
    before = rate_distortion.opened
    monkeypatch.setattr(rate_distortion, 'opened', lambda *args: opened.append(1) or before(*args))
    monkeypatch.setattr(rate_distortion, 'PEERS', {'AVIF': {'format': 'AVIF'}})
    rows = list(rate_distortion.of_peers(measure, 1))
    assert len(rows) == 102 and len(opened) < 70  # AVIF has 64 quantizers
    file = io.BytesIO()
    Image.fromarray(measure.images[1, 0].numpy()).save(file, 'AVIF', quality=41)
    one = rate_distortion.Measure(x[1:], None)
    expected = one(torch.from_numpy(np.array(Image.open(file).convert('L'))).view(1, 1, 16, 16) / 127.5 - 1)
    (own,) = [row for row in rate_distortion.of_peers(one, 41) if row['setting'] == 'quality 41']
    assert own['bytes'] == len(file.getvalue()) and own['PSNR'] == pytest.approx(expected['PSNR'])
    assert rows[-1]['PSNR'] == 99 and rows[-1]['SSIM'] == pytest.approx(1)


def test_a_stopped_run_resumes_and_a_larger_one_continues(tmp_path, monkeypatch):
    torch.manual_seed(0)
    net = DDN(16, 1, [8, 8], [1, 1], [5, 5], prior_width=8).eval()
    snapshots.save_network(tmp_path / 'net.safetensors', net)
    write_zip(tmp_path / 'x.zip', 3, (1, 16, 16))
    monkeypatch.setattr(rate_distortion, 'PART', 2)
    monkeypatch.setattr(rate_distortion, 'load_lpips', lambda: (_ for _ in ()).throw(OSError('no weights')))
    seen, of_codec = [], rate_distortion.of_codec

    def counted(made, x, measure):
        seen.append(len(x))
        return of_codec(made, x, measure)

    monkeypatch.setattr(rate_distortion, 'of_codec', counted)

    def run(name, num):
        seen.clear()
        invoke(rate_distortion.main, f'--network={tmp_path}/net.safetensors', f'--data={tmp_path}/x.zip',
               f'--num={num}', '--step=50', f'--results={tmp_path}/{name}')  # fmt: skip
        return json.loads((tmp_path / f'{name}.json').read_text())

    whole = run('whole', 3)
    assert seen == [2, 1]
    run('parts', 2)
    parts = run('parts', 3)
    assert seen == [1] and parts['num'] == whole['num'] == 3
    for a, b in zip(parts['rows'], whole['rows'], strict=True):
        assert a == {k: pytest.approx(v) for k, v in b.items()}
    (tmp_path / 'parts.md').unlink()
    assert run('parts', 3) == parts and seen == [] and (tmp_path / 'parts.md').is_file()
    path = str(tmp_path / 'parts.json')
    assert rate_distortion.resumed(path, {**parts, 'num': 0, 'rows': []}) == {k: parts[k] for k in ('num', 'rows')}
    for other in ('step', 'digest', 'data', 'lpips'):
        assert rate_distortion.resumed(path, {**parts, other: 'another'}) == {}


def test_a_curve_of_choices_ends_at_the_nearest_codes():
    net, x = network('head'), images(5)
    made = Codec(net)
    points = rate_choices.curve(made, x, 0.0, 1)
    errors = (net.decode(net.encode(x)).clamp(-1, 1) - x).square().mean((1, 2, 3))
    assert len(points) == 3 and [bits for bits, _ in points] == sorted(bits for bits, _ in points)
    assert points[-1][0] == pytest.approx(payload_bits(made, net.encode(x)).mean().item(), rel=1e-5)
    assert points[-1][1] == pytest.approx((-10 * (errors / 4).log10()).mean().item(), abs=1e-3)


def test_between_points_a_curve_is_linear_and_outside_there_is_none():
    points = [(300.0, 24.0), (100.0, 20.0)]
    assert rate_choices.at_bits(points, 150) == 21 and rate_choices.at_bits(points, 300) == 24
    assert rate_choices.at_bits(points, 99) is None and rate_choices.at_bits(points, 301) is None
    rows = [{'codec': 'x', 'bytes': b, 'PSNR': v} for b, v in ((10, 1.0), (1000, 3.0))]
    assert rate_distortion.at_bytes(rows, 'x', 100, 'PSNR') == pytest.approx(2)
    assert rate_distortion.at_bytes(rows, 'x', 9, 'PSNR') is None


def test_seams_are_steps_across_the_edges_of_tiles():
    image = torch.zeros(1, 8, 8)
    image[:, :, 4:] = 1.0  # one step, of 8 neighbours among 2 * 56
    assert seams.steps_at(image, [4], [4]) == pytest.approx((8 / 16) / (8 / 112))
    assert seams.steps_at(image, [2], [2]) == 0
    assert seams.edges((64, 32), (32, 32)) == ([16, 32, 48], [])


def test_tiles_side_by_side_are_each_encoded_alone():
    net, x = network('head'), images(1, size=(16, 24))[0]
    made = seams.side_by_side(Codec(net), x, Rate(layers=3))
    assert made.shape == x.shape
    for y, column in ((0, 8), (8, 16)):
        part = x[None, :, y : y + 8, column : column + 8]
        expected = net.decode(net.encode(part))[0]
        torch.testing.assert_close(made[:, y : y + 8, column : column + 8], expected)
