"""dnnlib.util: files whole or not at all, the log, downloads from a server on this machine."""

import errno
import hashlib
import os
import random
import subprocess
import sys
import textwrap

import pytest

import dnnlib
from dnnlib import util

# ---------------------------------------------------------------------------------------------------- words


@pytest.mark.parametrize(
    'seconds, text',
    [(0, '0s'), (7.4, '7s'), (59.6, '1m 00s'), (306, '5m 06s'), (7384, '2h 03m 04s'), (93784, '1d 02h 03m')],
)
def test_format_time(seconds, text):
    assert dnnlib.format_time(seconds) == text


@pytest.mark.parametrize('count, text', [(0, '0 B'), (1023, '1023 B'), (1536, '1.5 KiB'), (2 << 40, '2.0 TiB')])
def test_format_bytes(count, text):
    assert dnnlib.format_bytes(count) == text


@pytest.mark.parametrize(
    'text, shown',
    [
        ('https://user:pw@host/x.pkl', 'https://***@host/x.pkl'),
        ('HTTPS://secret@host:8080/x.pkl', 'HTTPS://***@host:8080/x.pkl'),
        ('https://u:p/w?d#@host/x', 'https://***@host/x'),
        ('https://:1234@host:80', 'https://***@host:80'),
        ('ftp://u:p@host/x and http:/u:p@host', 'ftp://***@host/x and http:/***@host'),
        ('https://host/x?token=a&X-Amz-Signature=b%20&raw#c', 'https://host/x?token=***&X-Amz-Signature=***&***'),
        ("see 'https://host/x?sig=a', or https://host/y?b.", "see 'https://host/x?sig=***', or https://host/y?***."),
        ('{"a": "https://host/x?sig=a", "b": 1}', '{"a": "https://host/x?sig=***", "b": 1}'),
        ('https://host/x#access_token=a', 'https://host/x#access_token=***'),
        *[(text, text) for text in ('http://host:80/x@1.2/y', 'http://[::1]:80/x@y', 'C:/Users/a@b?c', 'a: b@c?d')],
    ],
)
def test_secrets_of_urls_are_not_shown(text, shown):
    assert util.redacted(text) == shown and util.redacted(shown) == shown


def test_import_does_no_work():
    code = "import sys, dnnlib; assert not {'torch', 'requests', 'tqdm'} & set(sys.modules)"
    subprocess.run([sys.executable, '-c', code], check=True, cwd=os.path.dirname(os.path.dirname(dnnlib.__file__)))


# ----------------------------------------------------------------------------------------------------------------- logs


def test_logger_keeps_what_is_printed_and_restores(tmp_path, capsys):
    before = sys.stdout, sys.stderr
    for word in ('one', 'two'):
        with dnnlib.Logger(tmp_path / 'log.txt'):
            print(word)
            print('err', file=sys.stderr)
            assert (tmp_path / 'log.txt').read_text().endswith('err\n')  # at once, not at the end
    assert (sys.stdout, sys.stderr) == before
    assert (tmp_path / 'log.txt').read_text() == 'one\nerr\ntwo\nerr\n'
    assert capsys.readouterr().out == 'one\ntwo\n'


def test_logger_keeps_the_traceback_of_what_ended_it(tmp_path):
    before = sys.stdout
    with pytest.raises(ZeroDivisionError), dnnlib.Logger(tmp_path / 'log.txt'):
        1 / 0  # noqa: B018
    assert sys.stdout is before
    assert 'ZeroDivisionError' in (tmp_path / 'log.txt').read_text()


def test_logger_outlives_a_full_disk(tmp_path, capsys):
    if not os.path.exists('/dev/full'):
        pytest.skip('no /dev/full here')
    with dnnlib.Logger('/dev/full', mode='w'):
        print('still seen')
        print('and this')
    seen = capsys.readouterr()
    assert seen.out == 'still seen\nand this\n'
    assert seen.err.count('log is given up: No space left') == 1


def test_log_and_output_show_no_secret(tmp_path, capsys):
    with pytest.raises(ValueError), dnnlib.Logger(tmp_path / 'log.txt'):
        print('from', 'https://u:secret@host/x')
        print('https://host/x?key=secret', file=sys.stderr)
        raise ValueError('https://u:secret@host/x')
    seen = capsys.readouterr()
    assert seen.out == 'from https://***@host/x\n' and seen.err == 'https://host/x?key=***\n'
    assert 'u:secret' not in (log := (tmp_path / 'log.txt').read_text()) and '=secret' not in log


def run_logged(tmp_path, code: str, stdout, **kwargs) -> subprocess.CompletedProcess:
    """Python code within a Logger, in a process of its own."""
    code = f"""
import errno, os, sys, dnnlib
with dnnlib.Logger({str(tmp_path / 'log.txt')!r}):
{textwrap.indent(textwrap.dedent(code), '    ')}
    print('last')
    sys.exit(130)
"""
    root = os.path.dirname(os.path.dirname(dnnlib.__file__))
    return subprocess.run(
        [sys.executable, '-c', code], stdout=stdout, stderr=subprocess.PIPE, cwd=root, timeout=60, **kwargs
    )


def test_a_reader_that_goes_away_does_not_end_the_run(tmp_path):
    for how in ('flush', 'at exit', 'both'):
        reader, writer = os.pipe()
        os.close(reader)
        code = {
            'flush': "print('one', flush=True); print('two', flush=True)",
            'at exit': "print('one'); print('two')",
            'both': "os.dup2(1, 2); print('one', file=sys.stderr); print('two', flush=True)",
        }[how]
        result = run_logged(tmp_path, code, writer)
        os.close(writer)
        assert result.returncode == 130 and result.stderr == b''
        log = (tmp_path / 'log.txt').read_text()
        (tmp_path / 'log.txt').unlink()
        note = 'stdout is given up (Broken pipe); the output continues in this file\n'
        assert log.count(note) == 1 and log.count('is given up') == (2 if how == 'both' else 1)
        assert log.count('one\n') == log.count('two\n') == log.count('last\n') == 1


@pytest.mark.parametrize(
    'code, reason',
    [
        ('os.close(1); print(1, flush=True)', 'Bad file descriptor'),
        ('sys.__stdout__.close(); print(1, flush=True)', 'I/O operation on closed file'),
        ('import pty; a, b = pty.openpty(); os.dup2(b, 1); os.close(a); print(1, flush=True)', 'Input/output error'),
        ("os.dup2(os.open('/dev/full', os.O_WRONLY), 1); print(1, flush=True)", 'No space left on device'),
        ("assert not sys.stdout.isatty(); sys.stdout.close = None; print('é\\udcff 图')", None),
    ],
)
def test_an_output_that_cannot_be_written_is_given_up(tmp_path, code, reason):
    result = run_logged(tmp_path, code, subprocess.PIPE, env=os.environ | {'PYTHONIOENCODING': 'ascii'})
    assert result.returncode == 130 and result.stderr == b'', result.stderr
    log = (tmp_path / 'log.txt').read_text()
    assert log.count('given up') == log.count(f'stdout is given up ({reason}') == (reason is not None)
    assert log.endswith('last\n') or reason and log.endswith('this file\n')
    assert reason or result.stdout == b'\\xe9\\udcff \\u56fe\nlast\n' and 'é\\udcff 图\n' in log


def test_a_process_without_stdout_logs(tmp_path):
    code = 'import os; print(1, flush=True); sys.stdout.flush(); assert not sys.stdout.isatty()'
    result = run_logged(tmp_path, code, subprocess.DEVNULL, preexec_fn=lambda: os.close(1))
    assert result.returncode == 130 and result.stderr == b'', result.stderr
    assert (tmp_path / 'log.txt').read_text() == '1\nlast\n'


# ---------------------------------------------------------------------------------------------------------------- files


def test_atomic_write_appears_whole(tmp_path):
    path = tmp_path / 'a.bin'
    with dnnlib.atomic_write(path) as file:
        file.write(b'new')
        assert not path.exists()
    assert path.read_bytes() == b'new' and os.listdir(tmp_path) == ['a.bin']
    with dnnlib.atomic_write(path, 'w') as file:
        file.write('é')
    assert path.read_text(encoding='utf-8') == 'é'


def test_atomic_write_gives_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / 'plain').write_bytes(b'')
    with dnnlib.atomic_write(tmp_path / 'a'):
        pass
    assert (tmp_path / 'a').stat().st_mode == (tmp_path / 'plain').stat().st_mode


@pytest.mark.parametrize('error', [ValueError('x'), KeyboardInterrupt(), SystemExit(1)])
def test_atomic_write_leaves_the_old_file_when_interrupted(tmp_path, error):
    path = tmp_path / 'a.bin'
    path.write_bytes(b'old')
    with pytest.raises(type(error)), dnnlib.atomic_write(path) as file:
        file.write(b'half')
        raise error
    assert path.read_bytes() == b'old' and os.listdir(tmp_path) == ['a.bin']


def test_atomic_write_says_that_the_disk_is_full(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='disk full: could not write .*a.bin'):
        with dnnlib.atomic_write(tmp_path / 'a.bin') as file:
            file.write(b'1')
    assert os.listdir(tmp_path) == []


def test_atomic_write_names_the_file_that_was_asked_for(tmp_path):
    name = 250 * 'a'
    with pytest.raises(OSError, match=f'cannot write .*{name}: File name too long'):
        with dnnlib.atomic_write(tmp_path / name):
            pass


def test_atomic_write_names_a_file_that_is_too_large(tmp_path):
    with pytest.raises(OSError, match=r'cannot write .*a\.bin: File too large'):
        with dnnlib.atomic_write(tmp_path / 'a.bin'):
            raise OSError(errno.EFBIG, 'File too large')  # of a write: without a name
    assert os.listdir(tmp_path) == []


def test_atomic_write_makes_the_folder(tmp_path):
    with dnnlib.atomic_write(tmp_path / 'a/b/c.txt', 'w') as file:
        file.write('x')
    assert (tmp_path / 'a/b/c.txt').read_text() == 'x'


def test_atomic_write_replaces_no_device_and_no_link(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    (tmp_path / 'link').symlink_to('pipe')
    for name in ('pipe', 'link'):
        with pytest.raises(OSError, match='pipe: it is a folder, pipe or device, not a file'):
            with dnnlib.atomic_write(tmp_path / name):
                pass
        with pytest.raises(OSError, match=r'--dest=.* cannot be written \(.*a folder, pipe or device, not a file\)'):
            util.require_writable('--dest', tmp_path / name)
    (tmp_path / 'far').mkdir()
    (tmp_path / 'far/file').write_text('old')
    (tmp_path / 'to-file').symlink_to('far/file')
    with dnnlib.atomic_write(tmp_path / 'to-file', 'w') as file:
        file.write('new')
    assert (tmp_path / 'to-file').is_symlink() and (tmp_path / 'far/file').read_text() == 'new'
    assert (tmp_path / 'pipe').is_fifo() and len(os.listdir(tmp_path)) == 4


def test_a_url_is_not_a_place_to_write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match='--outdir=http://me:secret@host/x is a URL: give a place on this machine'):
        util.require_writable('--outdir', 'http://me:secret@host/x')


def test_whether_a_file_can_be_written_is_seen_without_making_anything(tmp_path, monkeypatch):
    (tmp_path / 'file').touch()
    monkeypatch.chdir(tmp_path)
    for path in ('x', 'a/b/x', 'a/../x', tmp_path / 'a' / 'b' / 'x', 'file'):
        util.require_writable('--dest', path, ['y'])
    for path in ('file/x', 'file/b/x', '.', '/proc/nope/x', 'a' * 300 + '/x'):
        with pytest.raises(OSError, match=r'--dest=.* cannot be written \(.*\): give another place'):
            util.require_writable('--dest', path)
    with pytest.raises(ValueError, match='--dest=a/x would replace another file'):
        util.require_writable('--dest', 'a/x', ['y', f'{tmp_path}/a/x'])
    assert os.listdir() == ['file']


def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path):
    (tmp_path / 'a.bin').write_bytes(data := random.Random(0).randbytes((1 << 20) + 1))
    assert util.file_sha256(str(tmp_path / 'a.bin')) == hashlib.sha256(data).hexdigest()


def test_remove_unfinished_after_kill(tmp_path):
    code = 'import dnnlib, os, signal, sys\nwith dnnlib.atomic_write(sys.argv[1]): os.kill(os.getpid(), signal.SIGKILL)'
    root = os.path.dirname(os.path.dirname(dnnlib.__file__))
    subprocess.run([sys.executable, '-c', code, str(tmp_path / 'a.bin')], cwd=root)
    (tmp_path / '.mine.tmp').write_bytes(b'')
    assert len(os.listdir(tmp_path)) == 2 and not (tmp_path / 'a.bin').exists()
    assert len(dnnlib.remove_unfinished(tmp_path)) == 1
    assert os.listdir(tmp_path) == ['.mine.tmp']
