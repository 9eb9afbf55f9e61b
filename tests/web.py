"""A web server on this machine that does to each request what a test wants: it cuts, stalls, corrupts, redirects, or refuses."""
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Web(ThreadingHTTPServer):
    """The `files` by their paths. `plan` says what is done with the requests, one after another, and then all is well."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.plan, self.asked, self.ended = {}, [], [], threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.ended.set()        # those that stall
        self.shutdown()
        self.server_close()

    def handle_error(self, request, address):       # the client has gone
        pass


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.asked.append((self.path, self.headers.get("Range")))
        act = server.plan.pop(0) if server.plan else deliver
        act(self, server.files.get(self.path))

    def log_message(self, *arguments):
        pass

    def start(self, content):
        """Send the headers, and return what is to follow."""
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        first = int(found[1]) if found else 0
        self.send_response(206 if found else 200)
        if found:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        return content[first:]


def deliver(handler, content):
    if content is None:
        handler.send_error(404)
    else:
        handler.wfile.write(handler.start(content))


def cut(count):
    """End after so many bytes of what was promised."""
    def act(handler, content):
        handler.wfile.write(handler.start(content)[:count])
    return act


def stall(count):
    """Say nothing more after so many bytes."""
    def act(handler, content):
        handler.wfile.write(handler.start(content)[:count])
        handler.wfile.flush()
        handler.server.ended.wait()
    return act


def corrupt(handler, content):
    """Change the last byte."""
    handler.wfile.write(handler.start(content[:-1] + bytes([content[-1] ^ 1])))


def ignore_range(handler, content):
    del handler.headers["Range"]
    deliver(handler, content)


def refuse(status):
    return lambda handler, content: handler.send_error(status)


def redirect(path):
    def act(handler, content):
        handler.send_response(302)
        handler.send_header("Location", path)
        handler.end_headers()
    return act


def answer(content, **headers):
    """Send something else, with a status of 200 unless Status says otherwise."""
    def act(handler, _):
        handler.send_response(int(headers.pop("Status", 200)))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(content)
    return act
