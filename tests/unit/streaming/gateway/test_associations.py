"""The parts of pynetdicom that are replaced, with the pynetdicom that is installed."""

import inspect
import threading
import time

from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import DIMSEMessage
from pynetdicom.dul import DULServiceProvider
from pynetdicom.transport import AssociationSocket

from streaming.gateway.dicom.associations import RingingQueue, RungEvent
from streaming.gateway.dicom.contexts import IMPLEMENTATION_UID, IMPLEMENTATION_VERSION


def test_private_names_and_what_is_relied_on_are_there() -> None:
    association = Association(AE(), "acceptor")
    assert isinstance(association._reactor_checkpoint, threading.Event)
    assert "self._reactor_checkpoint.wait()" in inspect.getsource(Association)
    assert association.dul.state_machine.current_state == "Sta1"
    assert isinstance(inspect.getattr_static(AssociationSocket, "ready"), property)
    turn = inspect.getsource(DULServiceProvider)
    assert "self.socket.ready" in turn
    assert "self.socket.recv(pdu_length)" in turn
    assert 'event_queue.put("Evt19")' in turn
    assert "self.message.decode_msg(" in inspect.getsource(DIMSEServiceProvider.receive_primitive)
    assert "self.data_set).write(" in inspect.getsource(DIMSEMessage.decode_msg), "data sets are written elsewhere"


def test_who_we_say_that_we_are_never_changes() -> None:
    assert IMPLEMENTATION_UID == "2.25.180429471283610954873341790842061357042"
    assert IMPLEMENTATION_UID.is_valid
    assert IMPLEMENTATION_VERSION == "XRAY_GATEWAY_1"
    assert len(IMPLEMENTATION_VERSION) <= 16


def test_a_queue_rings_after_it_has_what_was_put() -> None:
    seen: list[int] = []
    queue = RingingQueue(lambda: seen.append(queue.qsize()))
    queue.put("a")
    queue.put("b")
    assert seen == [1, 2]
    assert queue.get(block=False) == "a"


def test_an_event_waits_until_it_is_rung_and_while_it_is_clear() -> None:
    event = RungEvent()
    event.set()
    event.wait()  # takes up what `set` rang
    began = time.monotonic()
    assert event.wait()
    assert time.monotonic() - began > 0.05, "it does not wait for work"
    event.ring()
    event.clear()
    released: list[bool] = []
    thread = threading.Thread(target=lambda: released.append(event.wait()))
    thread.start()
    thread.join(0.3)
    assert released == [], "it does not wait while it is clear"
    event.set()
    thread.join(20)
    assert released == [True]
