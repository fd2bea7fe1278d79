"""The workload of scripts/try-gpu: trains a small language model on the text of Python's own library.

On SIGUSR1 it writes a checkpoint (which the snapshot's `before` hook asks for), and goes on. At its start it goes on
from the checkpoint that is there, and proves it: the digest of what lies in the GPU's memory is compared with
the one that was written down when the checkpoint was made.
"""

import glob
import hashlib
import json
import os
import signal
import sys
import sysconfig
import time

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

WIDTH, DEPTH, HEADS, CONTEXT, BATCH = 1024, int(os.environ.get("DEPTH", "12")), 16, 512, 16
device = torch.device("cuda")


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        b, t, _ = x.shape
        q, k, v = (p.view(b, t, HEADS, -1).transpose(1, 2) for p in self.qkv(self.norm1(x)).chunk(3, -1))
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(a.transpose(1, 2).reshape(b, t, WIDTH))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.token, self.place = nn.Embedding(256, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 256)

    def forward(self, x):
        places = torch.arange(x.shape[1], device=x.device)
        return self.head(self.norm(self.blocks(self.token(x) + self.place(places))))


def digest(model):
    sha = hashlib.sha256()
    for name, p in sorted(model.state_dict().items()):
        sha.update(name.encode())
        sha.update(p.detach().cpu().numpy().tobytes())
    return sha.hexdigest()


def write(path, text):
    with open(path + ".new", "w") as f:
        f.write(text)
    os.rename(path + ".new", path)


def save(model, optimizer, step):
    began = time.time()
    os.makedirs("checkpoint", exist_ok=True)
    torch.save(
        {"step": step, "digest": digest(model), "model": model.state_dict(), "optimizer": optimizer.state_dict()},
        "checkpoint/state.pt.new",
    )
    os.rename("checkpoint/state.pt.new", "checkpoint/state.pt")
    half = {name: p.to(torch.bfloat16).contiguous() for name, p in model.state_dict().items()}
    save_file(half, "checkpoint/model.safetensors.new")
    os.rename("checkpoint/model.safetensors.new", "checkpoint/model.safetensors")
    write("saved", json.dumps({"step": step, "seconds": round(time.time() - began, 2)}) + "\n")


def main():
    asked = []
    signal.signal(signal.SIGUSR1, lambda *_: asked.append(True))
    torch.manual_seed(1)
    files = sorted(glob.glob(sysconfig.get_paths()["stdlib"] + "/*.py"))
    text = torch.frombuffer(bytearray(b"".join(open(f, "rb").read() for f in files)), dtype=torch.uint8)
    text = text.long().to(device)
    model = Model().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4)
    step = 0
    if os.path.exists("checkpoint/state.pt"):
        began = time.time()
        state = torch.load("checkpoint/state.pt", map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
        here = digest(model)
        if here != state["digest"]:
            sys.exit(f"other tensors than were saved: {here}, not {state['digest']}")
        said = {"step": step, "same_bits_on_gpu": True, "seconds": round(time.time() - began, 2)}
        write("resumed", json.dumps(said) + "\n")
    while True:
        at = torch.randint(len(text) - CONTEXT - 1, (BATCH,), device=device)
        batch = torch.stack([text[a : a + CONTEXT + 1] for a in at.tolist()])
        with torch.autocast("cuda", dtype=torch.bfloat16):
            logits = model(batch[:, :-1])
        loss = F.cross_entropy(logits.float().view(-1, 256), batch[:, 1:].reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        # It serves once it has trained, so that `probe` means the GPU.
        write("train.json", json.dumps({"step": step, "loss": round(loss.item(), 3), "pid": os.getpid()}) + "\n")
        if asked:
            asked.clear()
            save(model, optimizer, step)


main()
