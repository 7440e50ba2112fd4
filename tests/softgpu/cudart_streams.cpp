// Streams and events, as the runtime's calls.
#include "tests/softgpu/at_end.h"
#include "tests/softgpu/cudart.h"
#include "tests/softgpu/streams.h"

namespace softgpu {
namespace {

constexpr const char* no_stream = "the stream does not exist, or was destroyed";
constexpr const char* no_event = "the event does not exist, or was destroyed";

void look_for_leaks() {
  if (context_lost()) return;
  const auto leak = [](const char* what, size_t count) {
    Place place;
    place.kernel = what;
    if (count > 0) report(FindingKind::leak, place, std::to_string(count) + " were not destroyed");
  };
  leak("streams", live_streams());
  leak("events", live_events());
}
__attribute__((constructor)) void register_checks() { end_checks().push_back(look_for_leaks); }

}  // namespace
}  // namespace softgpu

using namespace softgpu;

extern "C" {

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  if (const cudaError_t error = ready()) return result(error);
  if (flags != cudaStreamDefault && flags != cudaStreamNonBlocking) return result(cudaErrorInvalidValue);
  *stream = static_cast<cudaStream_t>(create_stream(flags == cudaStreamDefault));
  return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t* stream) { return cudaStreamCreateWithFlags(stream, cudaStreamDefault); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int) {
  return cudaStreamCreateWithFlags(stream, flags);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  if (const cudaError_t error = ready()) return result(error);
  if (!destroy_stream(stream)) return refuse("cudaStreamDestroy", no_stream, cudaErrorInvalidResourceHandle);
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  look_for_unchecked_launch();
  if (const cudaError_t error = ready()) return result(error);
  if (!is_stream(stream)) return refuse("cudaStreamSynchronize", no_stream, cudaErrorInvalidResourceHandle);
  synchronize(stream);
  return result(ready());
}

cudaError_t cudaStreamQuery(cudaStream_t stream) {
  look_for_unchecked_launch();
  if (const cudaError_t error = ready()) return result(error);
  if (!is_stream(stream)) return refuse("cudaStreamQuery", no_stream, cudaErrorInvalidResourceHandle);
  const bool nothing_left = idle(stream);
  if (const cudaError_t error = ready()) return result(error);
  return nothing_left ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  if (const cudaError_t error = ready()) return result(error);
  if (!is_stream(stream)) return refuse("cudaStreamWaitEvent", no_stream, cudaErrorInvalidResourceHandle);
  if (!wait_event(stream, event)) return refuse("cudaStreamWaitEvent", no_event, cudaErrorInvalidResourceHandle);
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  if (const cudaError_t error = ready()) return result(error);
  if (flags & ~static_cast<unsigned>(cudaEventBlockingSync | cudaEventDisableTiming))
    return result(cudaErrorInvalidValue);
  *event = static_cast<cudaEvent_t>(create_event((flags & cudaEventDisableTiming) == 0));
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, cudaEventDefault); }

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  if (const cudaError_t error = ready()) return result(error);
  if (!destroy_event(event)) return refuse("cudaEventDestroy", no_event, cudaErrorInvalidResourceHandle);
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  if (const cudaError_t error = ready()) return result(error);
  if (!is_stream(stream)) return refuse("cudaEventRecord", no_stream, cudaErrorInvalidResourceHandle);
  if (!record_event(event, stream)) return refuse("cudaEventRecord", no_event, cudaErrorInvalidResourceHandle);
  return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  look_for_unchecked_launch();
  if (const cudaError_t error = ready()) return result(error);
  if (!synchronize_event(event)) return refuse("cudaEventSynchronize", no_event, cudaErrorInvalidResourceHandle);
  return result(ready());
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  look_for_unchecked_launch();
  if (const cudaError_t error = ready()) return result(error);
  if (!is_event(event)) return refuse("cudaEventQuery", no_event, cudaErrorInvalidResourceHandle);
  const bool nothing_left = event_idle(event);
  if (const cudaError_t error = ready()) return result(error);
  return nothing_left ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t from, cudaEvent_t to) {
  if (const cudaError_t error = ready()) return result(error);
  if (!is_event(from) || !is_event(to)) return refuse("cudaEventElapsedTime", no_event, cudaErrorInvalidResourceHandle);
  return elapsed(from, to, *milliseconds) ? cudaSuccess : cudaErrorNotReady;
}

}  // extern "C"
