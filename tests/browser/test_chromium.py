"""What make test-browser says where Chromium does not start."""

import os
import subprocess
import sys

import chromium


def test_a_chromium_that_does_not_start_is_one_line(tmp_path):
    broken = tmp_path / 'chromium'
    broken.write_text('#!/bin/sh\necho "chromium: error while loading shared libraries: libnss3.so" >&2\nexit 127\n')
    broken.chmod(0o755)
    env = {**os.environ, 'PATH': f'{tmp_path}:{os.environ["PATH"]}'}
    done = subprocess.run([sys.executable, chromium.__file__], env=env, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ''
    assert done.stderr == 'chromium: error while loading shared libraries: libnss3.so\n'
