"""Downloads objects by parallel ranges straight to their files: nothing but bytes.

    raw_download.py LIST DIRECTORY CONNECTIONS

LIST is JSON: [{"url": …, "name": …, "size": …}]. The comparison of `restore_s3`.
"""

import http.client
import json
import os
import queue
import sys
import threading
import urllib.parse

RANGE = 16 << 20


def main():
    wanted, directory, connections = json.load(open(sys.argv[1])), sys.argv[2], int(sys.argv[3])
    work = queue.Queue()
    for item in wanted:
        fd = os.open(os.path.join(directory, item["name"]), os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        os.posix_fallocate(fd, 0, item["size"])
        for start in range(0, item["size"], RANGE):
            work.put((item["url"], fd, start, min(start + RANGE, item["size"])))
    failed = []
    threads = [threading.Thread(target=run, args=(work, failed)) for _ in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        sys.exit(f"raw download: {failed[0]}")


def run(work, failed):
    buffer = memoryview(bytearray(1 << 20))
    conn = None
    try:
        while True:
            try:
                url, fd, start, end = work.get_nowait()
            except queue.Empty:
                return
            parts = urllib.parse.urlsplit(url)
            conn = conn or http.client.HTTPConnection(parts.netloc)
            conn.request("GET", f"{parts.path}?{parts.query}", headers={"Range": f"bytes={start}-{end - 1}"})
            answer = conn.getresponse()
            if answer.status != 206:
                raise OSError(f"status {answer.status}: {answer.read(300)}")
            at = start
            while n := answer.readinto(buffer):
                os.pwrite(fd, buffer[:n], at)
                at += n
            if at != end:
                raise OSError(f"{end - at} bytes are missing")
    except Exception as error:  # noqa: BLE001 - told to the main thread
        failed.append(error)


main()
