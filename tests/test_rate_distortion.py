"""experiments/rate_distortion.py, rate_choices.py and seams.py: curves of a small network, steps between tiles."""

import pytest
import torch
from test_codec import images, network

from ddn_networks import DDN
from ddn_networks.code_rates import Rate, payload_bits
from ddn_networks.code_streams import Codec
from experiments import rate_choices, rate_distortion, seams

pytest.importorskip('constriction')


@pytest.mark.parametrize('with_finisher', [False, True])
def test_rows_of_the_codec_are_of_the_same_files_without_and_with_the_finisher(with_finisher):
    torch.manual_seed(0)
    net = DDN(16, 1, [8, 8], [1, 1], [5, 5], prior_width=8, finisher_width=4 * with_finisher).eval()
    x = images(3, size=(16, 16))
    if with_finisher:
        for parameter in net.finisher.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    rows = list(rate_distortion.of_codec(Codec(net), x, None))
    plain = [row for row in rows if row['codec'] == 'codec']
    other = [row for row in rows if row['codec'] == rate_distortion.FINISHED]
    assert len(plain) == net.num_layers and len(other) == net.num_layers * with_finisher
    expected = rate_distortion.compared(x, net.decode(net.encode(x), finish=False).clamp(-1, 1), None)
    assert plain[-1]['PSNR'] == pytest.approx(expected['PSNR'], abs=1e-3)
    if with_finisher:
        assert [row['bytes'] for row in plain] == [row['bytes'] for row in other]
        expected = rate_distortion.compared(x, net.decode(net.encode(x)).clamp(-1, 1), None)
        assert other[-1]['PSNR'] == pytest.approx(expected['PSNR'], abs=1e-3) != plain[-1]['PSNR']
    assert rate_distortion.names(rows) == ['codec', rate_distortion.FINISHED][: 1 + with_finisher]


def test_files_that_are_all_of_a_length_between_those_compared_are_a_report():
    rows = [{'codec': 'codec', 'setting': f'{i} layers', 'bytes': b, 'PSNR': 10.0 + i} for i, b in ((1, 17), (2, 18))]
    facts = {'num': 1, 'network_bytes': 1, 'model': 'prior'}
    assert rate_distortion.report(rows, facts).splitlines()[-1].split() == '| codec | 2 layers | 18 | 12 |'.split()
    assert rate_distortion.plot(rows, 'PSNR').size == (rate_distortion.WIDTH, rate_distortion.HEIGHT)


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
