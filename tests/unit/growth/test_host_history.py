"""The host's copy of what the device knows of requests."""

import numpy as np
import torch

from vllm_smart.growth.host_history import HostHistory


def test_a_copy_follows_from_where_it_was():
    device = torch.arange(40, dtype=torch.int32).view(4, 10)
    history = HostHistory(device, copies=True)
    history.follow(np.array([2, 0]), np.array([3, 1]))
    assert history.tokens[2].tolist() == [20, 21, 22, *[0] * 7]
    assert history.tokens[0].tolist() == [0] * 10
    device[2, :3] = 99  # known already: tokens that stand do not change
    history.follow(np.array([0, 2]), np.array([1, 10]))
    assert history.tokens[2].tolist() == list(range(20, 30))
    assert not history.tokens[[1, 3]].any()


def test_another_request_is_copied_from_its_start():
    device = torch.arange(20, dtype=torch.int32).view(2, 10)
    history = HostHistory(device, copies=True)
    history.follow(np.array([1]), np.array([8]))
    device[1] += 50
    history.add_request(1)
    history.follow(np.array([1]), np.array([5]))
    assert history.tokens[1, :5].tolist() == list(range(60, 65))
    history.follow(np.array([1]), np.array([4]))  # as a prompt that is cached begins anew
    assert history.tokens[1, :5].tolist() == list(range(60, 65))


def test_what_lies_on_the_host_is_not_copied():
    device = torch.zeros(2, 10, dtype=torch.int32)
    history = HostHistory(device, copies=False)
    history.follow(np.array([1]), np.array([4]))
    device[1, 9] = 7
    assert history.tokens[1, 9] == 7
