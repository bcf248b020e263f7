"""Try a Discrete Distribution Network on a web page of this machine.

\b
  python demo.py --network=mnist                       # a network of digits that comes with the code
  python demo.py --network=runs/00000-faces --codes=codes.npz

The page is at http://127.0.0.1:7860, for this machine alone unless --host says otherwise. It loads nothing from other
hosts. Ctrl-C ends it. docs/demo.md describes its tabs.
"""

import cli.environment  # noqa: F401  # before torch is loaded

# isort: split
import os
import signal
import sys
import threading
import webbrowser

import click

from cli.code_files import read_code_file
from cli.networks import load_network
from cli.options import GroupedCommand, network_options, one_line_errors, option_group, script_help
from torch_utils import distributed as dist


@click.command(
    cls=GroupedCommand, help=script_help(__file__), context_settings={'show_default': True, 'max_content_width': 110}
)
@network_options
@option_group(
    'What the page offers',
    click.option('--codes', metavar='FILE', help='Codes (latents.py encode) to find the nearest pictures in'),
    click.option('--classifier', metavar='FILE', help='TorchScript classifier to guide by classes (docs/guiding.md)'),
    click.option('--clip', metavar='MODEL[,pretrained=TAG]',
                 help='Model of open_clip to guide by texts (extra clip); may download its weights'),
)
@option_group(
    'Server',
    click.option('--host', metavar='ADDRESS', default='127.0.0.1',
                 help='Address to serve; 0.0.0.0 lets other machines in, without a password'),
    click.option('--port', metavar='INT', type=click.IntRange(1, 65535), default=7860, help='Port to serve'),
    click.option('--browser/--no-browser', default=True, help='Open the page in a browser'),
)  # fmt: skip
def main(network, ema, steps, device, finish, codes, classifier, clip, host, port, browser) -> None:
    with one_line_errors(), dist.session(device) as device:
        try:
            import uvicorn

            from page.app import Server, application
            from page.subject import Classifier, Subject, checked, text_guides
        except ModuleNotFoundError as error:
            raise click.ClickException(
                f"the page needs {error.name}: pip install -c constraints.txt -e '.[demo]', or make demo"
            ) from error
        import torch

        net = checked(load_network(network, ema, device, steps, finish))
        table = None if codes is None else net.check_codes(torch.from_numpy(read_code_file(codes).codes))
        name = os.path.basename(os.path.normpath(network)).removesuffix('.safetensors')
        judge = None if classifier is None else Classifier(classifier, net)
        app = application(Subject(net, name, table, judge, None if clip is None else text_guides(clip, net)), host)
        address = f'http://{"127.0.0.1" if host == "0.0.0.0" else host}:{port}'
        click.echo(f'{network}: {address}   (Ctrl-C ends it)')
        server = Server(uvicorn.Config(app, host, port, log_level='warning', timeout_graceful_shutdown=10))
        for ending in (signal.SIGTERM, signal.SIGHUP):  # by default they leave visitors' files behind
            if signal.getsignal(ending) is signal.SIG_DFL:
                signal.signal(ending, lambda number, frame: sys.exit(128 + number))
        if browser:
            threading.Timer(1.0, webbrowser.open, [address]).start()
        server.run()


if __name__ == '__main__':
    main()
