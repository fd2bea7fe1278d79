"""A language model so small that it fits a test, behind Ollama's API.

It loads its weights from the restored workspace and chooses each token by an inner product
over all of them, so that no byte of the weights is without influence on the answer.
"""

import array
import http.server
import json
import sys

VOCABULARY = "the a cat dog sat ran on under mat hat and then saw left big small red blue".split()


def load(path):
    weights = array.array("I")
    with open(path, "rb") as file:
        weights.frombytes(file.read())
    return weights


def generate(weights, prompt, tokens=12):
    state = sum((i + 1) * byte for i, byte in enumerate(prompt.encode())) or 1
    said = []
    for _ in range(tokens):
        # Odd activations: a change of any one weight changes the sum modulo 2^32.
        logit = sum(w * (state + 2 * i | 1) for i, w in enumerate(weights)) % 2**32
        state = state * 6364136223846793005 + logit & 2**64 - 1
        said.append(VOCABULARY[(state >> 33) % len(VOCABULARY)])
    return " ".join(said)


class Api(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        answer = {"model": asked["model"], "response": generate(WEIGHTS, asked["prompt"]), "done": True}
        body = json.dumps(answer).encode()
        self.send_response(200 if self.path == "/api/generate" else 404)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    WEIGHTS = load(sys.argv[1])
    if sys.argv[2] == "ask":
        print(generate(WEIGHTS, sys.argv[3]))
    else:
        http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Api).serve_forever()
