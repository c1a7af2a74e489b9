#!/usr/bin/env python3
"""paramd-bench at small sizes: its commands, its JSON, and what it says about wrong options."""
import glob
import json
import os
import shutil
import signal
import subprocess
import time
import unittest

PROGRAM = os.environ["PARAMD_BENCH"]
SMALL = ["--params", "5000", "--iters", "3"]
SETTINGS = {"command", "params", "workers", "shards", "aggregation", "optimizer", "clip", "wire", "checksum",
            "busy_poll", "staging_limit", "limit", "limit_workers", "iters", "seed"}  # yapf: disable


def run(*words):
    return subprocess.run([PROGRAM, *words], capture_output=True, text=True, timeout=240, check=False)


def measured(*words):
    done = run(*words, "--json")
    if done.returncode != 0:
        raise AssertionError(f"{words}: exit code {done.returncode}: {done.stderr}")
    return json.loads(done.stdout)


class Options(unittest.TestCase):

    def test_a_wrong_option_gives_one_line_that_says_what_is_allowed(self):
        for words, said in (
            ([], "no command"),
            (["fly"], "command fly: not limits, kernel, roundtrip"),
            (["kernel", "limits"], "limits: one command at a time"),
            (["roundtrip", "--params", "1"], "--params 1: not a whole number from 2 to"),
            (["roundtrip", "--params", "25m"], "--params 25m: not a whole number"),
            (["roundtrip", "--workers", "0"], "--workers 0: not a whole number from 1 to 1024"),
            (["roundtrip", "--shards", "65"], "--shards 65: not a whole number from 1 to 64"),
            (["roundtrip", "--aggregation", "ring"], "--aggregation ring: not allreduce or direct"),
            (["roundtrip", "--optimizer", "adamx"], "--optimizer adamx: not a rule of paramd"),
            (["roundtrip", "--clip", "0"], "--clip 0: not a norm above 0"),
            (["roundtrip", "--wire", "int8"], "--wire int8: not float32, bfloat16 or float16"),
            (["roundtrip", "--checksum", "yes"], "--checksum yes: not off or on"),
            (["roundtrip", "--busy-poll", "50"], "--busy-poll 50: not off or on"),
            (["roundtrip", "--limit", "sky"], "--limit sky: not pair, echo or none"),
            (["roundtrip", "--limit-workers", "2"], "--limit-workers 2: more than --workers 1"),
            (["roundtrip", "--iters", "0"], "--iters 0: not a whole number from 1 to 100000"),
            (["roundtrip", "--seed", "-1"], "--seed -1: not a whole number"),
        ):
            with self.subTest(words=words):
                done = run(*words)
                self.assertEqual(done.returncode, 2)
                self.assertEqual(done.stdout, "")
                self.assertTrue(done.stderr.startswith("paramd-bench: "), done.stderr)
                self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
                self.assertIn(said, done.stderr)

    def test_help_names_every_command_and_option(self):
        done = run("--help")
        self.assertEqual(done.returncode, 0)
        for word in ("limits", "kernel", "roundtrip", "scale", "--params", "--workers", "--shards", "--aggregation",
                     "--optimizer", "--clip", "--wire", "--checksum", "--busy-poll", "--staging-limit", "--iters", "--seed",
                     "--json"):
            self.assertIn(word, done.stdout)


class Roundtrip(unittest.TestCase):

    def check_times(self, result):
        self.assertLessEqual(SETTINGS, result.keys())
        self.assertLessEqual(0 < result["min_ms"], result["median_ms"] <= result["max_ms"])
        self.assertLessEqual(result["limit_min_ms"], result["limit_median_ms"])
        self.assertAlmostEqual(result["ratio"], result["median_ms"] / result["limit_median_ms"], places=3)
        self.assertAlmostEqual(result["min_ratio"], result["min_ms"] / result["limit_min_ms"], places=3)

    def check_memory(self, result):
        self.assertEqual([each["rank"] for each in result["memory"]], list(range(result["shards"])))
        for each in result["memory"]:
            self.assertGreater(each["resident_bytes"], 0)
            self.assertLessEqual(each["resident_bytes"], each["allowed_bytes"])

    def test_a_lone_rank_and_one_worker(self):
        result = measured("roundtrip", "--shards", "1", *SMALL)
        self.check_times(result)
        self.assertEqual((result["params"], result["workers"], result["shards"]), (5000, 1, 1))
        self.check_memory(result)

    def test_ranks_and_workers_with_every_option(self):
        result = measured("roundtrip", "--workers", "3", "--shards", "2", "--aggregation", "allreduce",
                          "--optimizer", "lamb", "--clip", "0.5", "--wire", "bfloat16", "--checksum", "off",
                          "--busy-poll", "off", "--staging-limit", "20k", "--limit", "echo", "--limit-workers", "1",
                          "--seed", "7", *SMALL)
        self.check_times(result)
        self.assertEqual(result["aggregation"], "allreduce")
        self.assertEqual(result["optimizer"], "lamb")
        self.assertEqual(result["clip"], 0.5)
        self.assertEqual(result["wire"], "bfloat16")
        self.assertIs(result["checksum"], False)
        self.assertIs(result["busy_poll"], False)
        self.assertEqual(result["staging_limit"], 20000)
        self.assertEqual((result["limit"], result["limit_workers"]), ("echo", 1))
        self.check_memory(result)

    def test_a_large_model_fits_its_allowance_in_every_type(self):
        allowed = {}
        for wire in ("float32", "bfloat16", "float16"):
            with self.subTest(wire=wire):
                # A copy of the parameters, be it in two bytes an element, is more than what is left for the rest.
                result = measured("roundtrip", "--params", "20M", "--iters", "3", "--limit", "none", "--wire", wire)
                self.check_memory(result)
                allowed[wire] = result["memory"][0]["allowed_bytes"]
        self.assertEqual(allowed["float32"] - allowed["bfloat16"], 10_000_000 * 2)
        self.assertEqual(allowed["bfloat16"], allowed["float16"])

    def test_sums_of_a_large_model_fit_its_allowance(self):
        for settings in (("--wire", "bfloat16", "--clip", "1"), ("--wire", "bfloat16", "--optimizer", "lamb"),
                         ("--aggregation", "allreduce", "--workers", "2"),
                         ("--staging-limit", "40M", "--workers", "2")):
            with self.subTest(settings=settings):
                # A sum of the shard is more than what is left for the rest.
                self.check_memory(measured("roundtrip", "--params", "20M", "--iters", "3", "--limit", "none", *settings))

    def test_without_a_limit_there_is_no_ratio(self):
        result = measured("roundtrip", "--shards", "1", "--limit", "none", *SMALL)
        self.assertNotIn("ratio", result)
        self.assertNotIn("limit_median_ms", result)

    def test_what_is_missing_is_told_in_one_line(self):
        for command, said in (("roundtrip", "paramd did not start: mpirun: not found"),
                              ("limits", "ended without a result; is mpirun installed?")):
            with self.subTest(command=command):
                done = subprocess.run([PROGRAM, command, "--json", *SMALL], capture_output=True, text=True,
                                      timeout=240, check=False, env={"PATH": "/nowhere"})
                self.assertEqual(done.returncode, 1)
                self.assertEqual(done.stdout, "")
                self.assertTrue(done.stderr.splitlines()[-1].startswith("paramd-bench: "), done.stderr)
                self.assertIn(said, done.stderr.splitlines()[-1])

    def test_text_shows_paramd_the_limit_and_the_ratio(self):
        done = run("roundtrip", "--shards", "1", *SMALL)
        self.assertEqual(done.returncode, 0, done.stderr)
        for word in ("roundtrip: 5000 parameters, 1 worker, 1 shard", "paramd ", "limit ", "ratio ", "rank 0:"):
            self.assertIn(word, done.stdout)

    def test_a_signal_ends_it_and_leaves_nothing(self):
        before = set(glob.glob("/dev/shm/paramd-bench.*"))
        bench = subprocess.Popen([PROGRAM, "roundtrip", "--params", "5000", "--iters", "100000"],
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for line in bench.stderr:
            if line.startswith("measuring"):
                break
        bench.send_signal(signal.SIGTERM)
        _, errors = bench.communicate(timeout=60)
        self.assertEqual(bench.returncode, 1)
        self.assertIn("paramd-bench: interrupted: Terminated", errors)
        self.assertEqual(set(glob.glob("/dev/shm/paramd-bench.*")) - before, set())

    def test_no_process_outlives_a_bench_that_is_killed(self):
        before = set(glob.glob("/dev/shm/paramd-bench.*"))
        bench = subprocess.Popen([PROGRAM, "roundtrip", "--params", "5000", "--iters", "100000", "--shards", "1"],
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for line in bench.stderr:
            if line.startswith("measuring"):
                break
        with open(f"/proc/{bench.pid}/task/{bench.pid}/children", encoding="ascii") as file:
            children = file.read().split()
        self.assertGreaterEqual(len(children), 4)  # the daemon, two servers, a worker
        bench.kill()
        bench.communicate(timeout=60)
        deadline = time.monotonic() + 60
        while any(os.path.exists(f"/proc/{pid}") for pid in children) and time.monotonic() < deadline:
            time.sleep(0.05)
        self.assertFalse([pid for pid in children if os.path.exists(f"/proc/{pid}")])
        for directory in set(glob.glob("/dev/shm/paramd-bench.*")) - before:
            shutil.rmtree(directory)  # nobody is left who could


class Scale(unittest.TestCase):

    def test_each_series_has_its_points_and_a_fit(self):
        series = measured("scale", *SMALL)["series"]
        self.assertEqual([each["vary"] for each in series], ["params", "workers", "shards"])
        for each in series:
            values, times = zip(*((point["value"], point["median_ms"]) for point in each["points"]))
            self.assertEqual(list(values), sorted(set(values)))
            # A line by least squares goes through the mean of its points.
            scale = {"params": 1e6, "workers": 1e6 / 5000, "shards": 1e3}[each["vary"]]
            mean = sum(values) / len(values)
            fitted = each["fixed_ms"] + each["slope"] / scale * mean
            self.assertAlmostEqual(fitted / (sum(times) / len(times)), 1, places=3)


class Machine(unittest.TestCase):

    def test_kernels_have_a_rate_and_a_limit(self):
        rows = measured("kernel", *SMALL)["kernels"]
        names = {row["name"] for row in rows}
        self.assertLessEqual({"adamw", "adam", "sgd", "lion", "lamb, pass 1", "sum of 2", "to bfloat16"}, names)
        for row in rows:
            self.assertGreater(row["gb_s"], 0)
            self.assertAlmostEqual(row["ratio"] * row["limit_gb_s"] / row["gb_s"], 1, places=2)

    def test_limits_are_those_of_memory_tcp_and_mpi(self):
        values = measured("limits", *SMALL)["limits"]
        for name in ("read_1_threads", "triad_1_threads", "memcpy_1_threads", "tcp", "ping_pong_4_bytes",
                     "ping_pong_40000_bytes", "mpi_allreduce_2_ranks"):
            self.assertGreater(values[name], 0)


if __name__ == "__main__":
    unittest.main(verbosity=2)
