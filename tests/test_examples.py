"""The examples do what they say."""
import http.client
import importlib.util
import io
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import nbcnn

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.fixture
def server():
    """The server of examples/server.py on loopback, and its model."""
    spec = importlib.util.spec_from_file_location("server", EXAMPLES / "server.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = nbcnn.Sequential([nbcnn.Conv2d(3, 8, 3), nbcnn.MaxPool2d(2), nbcnn.Flatten(), nbcnn.Linear(72, 3)],
                             input_shape=(3, 8, 8), classes=["cat", "dog", "owl"])
    server = module.make_server(model)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server, model
    server.shutdown()
    thread.join()
    server.server_close()


def post(server, body, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    try:
        connection.request("POST", "/", body, headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def test_each_request_gets_its_own_answer(server):
    server, model = server
    bodies, expected = [], []
    for image in np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8):
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "PNG")
        bodies.append(stream.getvalue())
        shares = nbcnn.kernels.softmax(model(image.transpose(2, 0, 1)[None]))[0]
        expected.append(dict(zip(model.classes, np.round(shares.astype(float), 6).tolist(), strict=True)))
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda body: post(server, body), bodies))
    assert answers == [(200, shares) for shares in expected]
    assert all(list(shares.values()) == sorted(shares.values(), reverse=True) for _, shares in answers)


def test_what_is_no_image_is_refused(server):
    server, _ = server
    assert post(server, b"no image")[0] == 400
    assert "Content-Length" in post(server, b"")[1]["error"]
    assert post(server, b"x", **{"Content-Length": "99999999999"})[0] == 400
    assert post(server, b"x", **{"Content-Length": "many"})[0] == 400
