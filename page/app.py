"""The page as a web application that loads nothing from other hosts and shows nothing of this machine."""

import os
import tempfile
from pathlib import Path
from types import FrameType

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from page import compress, guide, sample, tree
from page.pictures import MAX_UPLOAD
from page.subject import Subject

MAX_BODY = 4 << 20  # bytes of a request that is not an upload
LOOPBACK = ('127.0.0.1', 'localhost', '::1')
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'; form-action 'self'"
TABS = {'Sample': sample.build, 'Guide': guide.build, 'Tree': tree.build, 'Compress': compress.build}


def page(subject: Subject) -> gr.Blocks:
    """The page of a network."""
    with gr.Blocks(
        analytics_enabled=False, title='Discrete Distribution Network', delete_cache=(600, 600)
    ) as blocks:
        H, W = subject.net.img_resolution
        gr.Markdown(
            f'# Discrete Distribution Network\nA network that makes a picture of {W} x {H} pixels by '
            f'{subject.net.num_codes} choices in {subject.net.num_layers} layers. This one is **{subject.name}**.'
        )
        for name, build in TABS.items():
            with gr.Tab(name):
                build(subject)
    # One at a time and in the order of asking: what is shown at the end is what a visitor asked for last.
    blocks.queue(default_concurrency_limit=1, api_open=False)
    return blocks


def application(subject: Subject, host: str) -> FastAPI:
    """The application that a server serves at ``host``."""
    folder = tempfile.TemporaryDirectory(prefix='ddn-page-')  # what visitors give; gone when the process ends
    os.environ.update(GRADIO_TEMP_DIR=folder.name, GRADIO_ANALYTICS_ENABLED='False', HF_HUB_OFFLINE='1')
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.state.folder = folder
    app = gr.mount_gradio_app(
        app, page(subject), path='', server_name=host, footer_links=[], run_history=False, show_error=False,
        max_file_size=MAX_UPLOAD, ssr_mode=False, enable_monitoring=False, pwa=False, mcp_server=False,
        theme=gr.themes.Base(
            primary_hue='indigo', neutral_hue='slate', font=['system-ui', 'sans-serif'],
            font_mono=['ui-monospace', 'monospace'], radius_size='md',
        ),
        css_paths=Path(__file__).parent / 'style.css',
    )
    app.state.closing = app.routes[-1].app.stop_event  # of Gradio: its lasting connections end
    app.add_middleware(Guarded)
    if host in LOOPBACK:  # pages of other sites cannot reach it under a name of theirs
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(LOOPBACK))
    return app


class Server(uvicorn.Server):
    """A server of ``application`` that a signal ends, although pages are open."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.config.app.state.closing.set()
        super().handle_exit(sig, frame)


class Guarded:
    """Refuse requests with large bodies, uploads of files apart, and tell browsers to load from this server alone."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope['type'] != 'http':
            return await self.app(scope, receive, send)
        left = (MAX_UPLOAD if scope['path'].endswith('/upload') else 0) + MAX_BODY
        claimed = dict(scope['headers']).get(b'content-length', b'0')
        if not claimed.isdigit() or int(claimed) > left:
            return await PlainTextResponse('This request is too large.', 413)(scope, receive, send)

        async def bounded() -> dict:
            nonlocal left
            message = await receive()
            left -= len(message.get('body', b''))
            if left < 0:
                raise OverflowError('a request is too large')  # one that does not say its length
            return message

        async def with_policy(message: dict) -> None:
            if message['type'] == 'http.response.start':
                message['headers'] = [
                    *message.get('headers', []),
                    (b'content-security-policy', POLICY.encode()),
                    (b'referrer-policy', b'no-referrer'),
                    (b'x-content-type-options', b'nosniff'),
                ]
            await send(message)

        await self.app(scope, bounded, with_policy)
