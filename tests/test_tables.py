"""Tables of results, by hand."""

import json

from cli.tables import markdown, write_results


def test_a_table_is_aligned_and_says_what_is_not_known():
    rows = [
        {'way': 'top 2', 'images': 12345, 'PSNR': 21.23456, 'to': 'the half', 'FID': '12.5 ± 0.1'},
        {'way': 'guided', 'PSNR': 120000.0, 'images': None, 'to': 'K=8'},
    ]
    assert markdown(rows).splitlines() == [
        '| way    | images |    PSNR | to       |        FID |',
        '| ------ | -----: | ------: | -------- | ---------: |',
        '| top 2  | 12,345 |   21.23 | the half | 12.5 ± 0.1 |',
        '| guided |      - | 120,000 | K=8      |          - |',
    ]
    assert markdown([{'a': 1.0, 'b': True}], '.1f').endswith('| 1.0 | True |')


def test_results_are_text_and_every_digit(tmp_path):
    write_results(tmp_path / 'new' / 'table', 'text\n\n', {'psnr': 21.234567891234567})
    assert (tmp_path / 'new' / 'table.md').read_text() == 'text\n'
    assert json.loads((tmp_path / 'new' / 'table.json').read_text()) == {'psnr': 21.234567891234567}
