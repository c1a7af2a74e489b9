"""The layering check finds what it is there to find: small trees and libraries that break each rule."""
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

sys.dont_write_bytecode = True
import layering  # noqa: E402

COMPILER = os.environ.get("CC", "cc")

BROKEN_INCLUDES = {
    "common/tensor.c": '#include "server/core/engine.h"',
    "common/text.c": "#include <time.h>",
    "common/shard_plan.c": '#include "paramd.pb-c.h"',
    "server/core/engine.c": "#include <uv.h>",
    "server/core/step.c": "#include <mpi.h>",
    "server/core/reduce.h": '#include "server/mpi/collectives.h"',
    "server/core/session.c": "#include <sys/socket.h>",
    "server/io/loop.c": "#include <mpi.h>",
    "server/mpi/world.c": '#include "server/io/loop.h"',
    "client/request.c": '#include "server/core/session.h"',
    "client/socket.c": "#include <uv.h>",
    "client/worker/main.c": '#include "common/text.h"',
    "client/worker/progress.c": '#include "client/socket.h"',
    "client/paramctl.c": '#include "client/stream.h"',
}
SOUND_INCLUDES = {
    "common/message.c": '#include "common/message.h"\n#include "paramd.pb-c.h"\n#include <string.h>',
    "server/core/engine.c": '#include "common/tensor.h"\n#include "server/core/event.h"',
    "server/io/loop.c": '#include "server/core/engine.h"\n#include <uv.h>\n#include <unistd.h>',
    "server/daemon.c": '#include "server/io/loop.h"\n#include "server/mpi/world.h"',
    "client/socket.c": '#include "client/socket.h"\n#include "common/frame.h"\n#include <poll.h>',
    "client/worker/main.c": '#include "client/include/paramd.h"\n#include "client/worker/network.h"',
}
BROKEN_CALLS = {
    "libuv": "int uv_run(void *, int); int f(void) { return uv_run(0, 0); }",
    "MPI": "int MPI_Barrier(void *); int f(void) { return MPI_Barrier(0); }",
    "sockets": "#include <sys/socket.h>\nint f(void) { return socket(AF_INET, SOCK_STREAM, 0); }",
    "files": '#include <stdio.h>\nvoid *f(void) { return fopen("a", "r"); }',
    "printing": '#include <stdio.h>\nint f(int i) { return printf("%d", i); }',
    "clocks": "#include <time.h>\nlong f(void) { return time(0); }",
    "randomness": "#include <stdlib.h>\nint f(void) { return rand(); }",
    "processes": "#include <unistd.h>\nint f(void) { return fork(); }",
    "threads": "#include <pthread.h>\nint f(pthread_mutex_t *m) { return pthread_mutex_lock(m); }",
    "the heap without pd_heap": "#include <stdlib.h>\nvoid *f(void) { return malloc(8); }",
}


def write_tree(root, files):
    for name, text in files.items():
        path = pathlib.Path(root, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


def build_library(folder, text, member="pure.c"):
    source, target = pathlib.Path(folder, member), pathlib.Path(folder, member + ".o")
    library = pathlib.Path(folder, "libpure.a")
    source.write_text(text + "\n")
    subprocess.run([COMPILER, "-c", "-o", target, source], check=True)
    subprocess.run(["ar", "crs", library, target], check=True)
    return library


class Layering(unittest.TestCase):
    def test_each_forbidden_include_is_found(self):
        for name, text in BROKEN_INCLUDES.items():
            with self.subTest(name=name), tempfile.TemporaryDirectory() as root:
                write_tree(root, {name: text})
                faults, _ = layering.include_faults(pathlib.Path(root))
                self.assertEqual(len(faults), 1)
                self.assertTrue(faults[0].startswith(f"{name}:1: may not include "), faults[0])

    def test_allowed_includes_pass(self):
        with tempfile.TemporaryDirectory() as root:
            write_tree(root, SOUND_INCLUDES)
            self.assertEqual(layering.include_faults(pathlib.Path(root)), ([], len(SOUND_INCLUDES)))

    def test_each_forbidden_call_is_found(self):
        self.assertEqual(set(BROKEN_CALLS), set(layering.FORBIDDEN_CALLS))
        for what, text in BROKEN_CALLS.items():
            with self.subTest(what=what), tempfile.TemporaryDirectory() as folder:
                faults = layering.call_faults(build_library(folder, text))
                self.assertEqual(len(faults), 1, faults)
                self.assertTrue(faults[0].endswith(what), faults[0])

    def test_an_exception_holds_for_its_object_only(self):
        text = BROKEN_CALLS["the heap without pd_heap"]
        with tempfile.TemporaryDirectory() as folder:
            self.assertEqual(layering.call_faults(build_library(folder, text, "heap.c")), [])
        with tempfile.TemporaryDirectory() as folder:
            self.assertEqual(len(layering.call_faults(build_library(folder, text, "heap2.c"))), 1)

    def test_computing_passes(self):
        text = "#include <stdio.h>\n#include <string.h>\n#include <math.h>\n" \
               'int f(char *b, double x) { return snprintf(b, 9, "%f", pow(x, x)) + strcmp(b, b); }'
        with tempfile.TemporaryDirectory() as folder:
            self.assertEqual(layering.call_faults(build_library(folder, text)), [])

    def test_a_stray_export_is_found(self):
        text = "int paramd_good(void) { return 1; } int pd_stray(void) { return 2; }"
        with tempfile.TemporaryDirectory() as folder:
            source, library = pathlib.Path(folder, "a.c"), pathlib.Path(folder, "libparamd.so")
            source.write_text(text + "\n")
            subprocess.run([COMPILER, "-shared", "-fPIC", "-o", library, source], check=True)
            self.assertEqual(layering.export_faults(library), ["libparamd.so: may not export pd_stray"])


if __name__ == "__main__":
    unittest.main()
