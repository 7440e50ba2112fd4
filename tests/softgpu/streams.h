// Streams and events: the order of work, and what runs when.
//
// Work is queued, and runs as late as can be: when the host waits for it, or something it waits for needs it. So a copy
// from pinned memory sees what the host did to that memory in the meantime, and a missing wait shows. The order that
// streams and events promise is kept as vector clocks, by which memory.h tells whether two accesses are ordered.
//
// A stream is the runtime's handle; null: the default stream, with the legacy order against blocking streams. All
// functions are thread-safe. What the host waited for is before all that any of its threads enqueues afterwards.
#pragma once

#include <functional>

#include "tests/softgpu/memory.h"

namespace softgpu {

// Queues work on a stream. `run` gets the work's number, and may be called from any thread that waits. `name` is shown
// in findings.
WorkId enqueue(void* stream, const char* name, std::function<void(WorkId)> run);
// Runs everything that the stream holds and waits for; all of it is then before what the host does next.
void synchronize(void* stream);
void synchronize_all();
// Runs a work, and what it waits for, unless that has happened. Promises no order to anybody: for what the runtime
// itself needs done, such as memory that is about to be freed.
void run_to(WorkId work);
void run_all();

// Whether `earlier` is ordered before `later` by streams, events and the host's waits. True for a work and itself.
bool happens_before(WorkId earlier, WorkId later);
// The lowest number of a work, of the last 4096, that is not ordered before this one; its own: all are. By what runs
// the work only.
WorkId first_unordered(WorkId work);
// "kernel rms_norm on stream 2", for messages.
std::string describe_work(WorkId work);

void* create_stream(bool blocking);
bool destroy_stream(void* stream);  // false: not a stream. Its work is run first.
bool is_stream(void* stream);       // null is one
bool idle(void* stream);            // nothing left to run; else runs it, so that a loop of queries ends

void* create_event(bool timing);
bool destroy_event(void* event);  // false: not an event; so for all below
bool is_event(void* event);
bool record_event(void* event, void* stream);
bool wait_event(void* stream, void* event);  // the stream waits
bool synchronize_event(void* event);         // the host waits
bool event_idle(void* event);                // as idle()
// Milliseconds between the moments at which the works before the events had run. False: not both have.
bool elapsed(void* from, void* to, float& milliseconds);

size_t live_streams();
size_t live_events();

// After an illegal access nothing runs any more, as on a GPU: works are dropped.
void lose_context();
bool context_lost();
void reset_context();  // drops all work, streams and events

}  // namespace softgpu
