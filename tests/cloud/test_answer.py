"""Who counts as alone."""

import cloud.answer


def test_a_client_is_alone_once_no_other_has_asked_for_a_while(monkeypatch):
    clock = 100.0
    monkeypatch.setattr(cloud.answer.time, "monotonic", lambda: clock)
    clients = cloud.answer.Clients()
    assert not clients.alone(("a", 1))
    clock += 0.9
    assert not clients.alone(("a", 1))
    clock += 0.2
    assert clients.alone(("a", 1))
    assert not clients.alone(("a", 2))
    clock += 0.5
    assert not clients.alone(("a", 1))
    clock += 2
    assert clients.alone(("a", 1))
    assert not clients.alone(None)
    clock += 2
    assert not clients.alone(None)
