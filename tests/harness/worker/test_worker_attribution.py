"""The allocator's history replayed: what was live at the peak, and whose it was."""

from harness.worker.attribution import frames_of, largest, live_at_peak


def alloc(addr, size, *frames):
    return {"action": "alloc", "addr": addr, "size": size, "frames": [frame(*f) for f in frames]}


def free(addr, action="free_requested"):
    return {"action": action, "addr": addr, "size": 0, "frames": []}


def frame(filename, line, name):
    return {"filename": filename, "line": line, "name": name}


LOSS = ("/x/mine/loss.py", 7, "forward")
TORCH = ("/x/site-packages/torch/nn/functional.py", 99, "linear")
CPP = ("/src/aten/mm.cpp", 1, "mm")
HARNESS = ("/x/harness/worker/call.py", 30, "forward")


def test_the_peak_is_where_most_is_live():
    events = [
        alloc(1, 100, LOSS),
        alloc(2, 50, LOSS),
        free(2),
        free(2, "free_completed"),  # the same block: it counts once
        alloc(3, 40, TORCH, LOSS),
        free(9),  # was live before the history began
        {"action": "segment_alloc", "addr": 5, "size": 10**6, "frames": []},  # what the allocator holds is no block
        alloc(2, 60, LOSS),  # an address is used again
        free(1),
        alloc(4, 90, LOSS),
        free(4),
    ]
    assert sorted(event["size"] for event in live_at_peak(events)) == [40, 60, 100]
    assert live_at_peak([]) == []


def test_blocks_of_one_place_are_added_and_sorted():
    found = largest([alloc(1, 10, LOSS), alloc(2, 10, LOSS), alloc(3, 15, ("/y/other.py", 3, "f")), alloc(4, 1)])
    assert [(block.bytes, block.count, block.frames) for block in found] == [
        (20, 2, ["mine/loss.py:7 forward"]),
        (15, 1, ["y/other.py:3 f"]),
        (1, 1, []),
    ]
    assert len(largest([alloc(k, 1, ("/y/other.py", k, "f")) for k in range(20)])) == 8


def test_frames_of_torch_and_the_harness_are_left_out_where_others_tell_more():
    assert frames_of(alloc(1, 1, CPP, TORCH, LOSS, HARNESS)) == ("mine/loss.py:7 forward",)
    assert frames_of(alloc(1, 1, TORCH, HARNESS)) == ("nn/functional.py:99 linear", "worker/call.py:30 forward")
