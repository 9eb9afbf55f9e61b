"""A prediction server in the standard library: one model, as many threads as there are requests.

    python examples/server.py runs/.../best.safetensors 8000
    curl --data-binary @cat.jpg http://127.0.0.1:8000

It answers with JSON, {"cat": 0.873, "dog": 0.081, ...}, the best first. It listens on this machine only; what faces a network needs
a real web server in front of it.
"""
import io
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import nbcnn

LARGEST = 20_000_000        # bytes of an image


def make_server(model, port=0):
    """A server that is ready to `serve_forever`; port 0 stands for any free one."""

    class Handler(BaseHTTPRequestHandler):
        timeout = 10        # seconds that a client may be silent

        def do_POST(self):
            try:
                size = int(self.headers.get("Content-Length", "0"))
                if not 0 < size <= LARGEST:
                    raise ValueError(f"expected an image of at most {LARGEST:,} bytes and its Content-Length")
                image = nbcnn.pictures.read_picture(io.BytesIO(self.rfile.read(size)), model.input_shape)
                status, answer = 200, self.predict(image)
            except ValueError as error:
                status, answer = 400, {"error": str(error)}
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode() + b"\n")

        def predict(self, image):
            shares = nbcnn.kernels.softmax(model(image[None]))[0]         # threads take turns here, and need no lock of ours
            return {model.classes[k]: round(float(shares[k]), 6) for k in (-shares).argsort()}

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


if __name__ == "__main__":
    path, port = sys.argv[1:]
    server = make_server(nbcnn.load(path), int(port))
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
