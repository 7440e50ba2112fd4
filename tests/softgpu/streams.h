// Streams and events: the order of work, and what runs when.
//
// Work is queued, and runs as late as can be: when the host waits for it, or something it waits for needs it. So a copy
// from pinned memory sees what the host did to that memory in the meantime, and a missing wait shows. The order that
// streams and events promise is kept as vector clocks, by which memory.h tells whether two accesses are ordered.
#pragma once

#include <functional>

#include "tests/softgpu/memory.h"

namespace softgpu {

// Queues work on a stream (the runtime's handle; null: the default stream). `run` gets the work's number, and may be
// called from any thread that waits. `name` is shown in findings.
WorkId enqueue(void* stream, const char* name, std::function<void(WorkId)> run);
// Runs everything that the stream holds and waits for.
void synchronize(void* stream);

// Whether `earlier` is ordered before `later` by streams, events and the host's waits.
bool happens_before(WorkId earlier, WorkId later);
// "kernel rms_norm on stream 2", for messages.
std::string describe_work(WorkId work);

}  // namespace softgpu
