#include "training/tensorboard.h"

#include <unistd.h>

#include <array>
#include <bit>
#include <cerrno>
#include <chrono>
#include <cstring>

#include "runtime/error.h"

namespace notellm {
namespace {

// CRC-32C (Castagnoli; RFC 3720, appendix B.4), reflected polynomial 0x82F63B78, and the mask of TFRecord.
uint32_t masked_crc(const std::string& bytes) {
  static const auto table = [] {
    std::array<uint32_t, 256> t{};
    for (uint32_t i = 0; i < 256; ++i) {
      t[i] = i;
      for (int bit = 0; bit < 8; ++bit) t[i] = (t[i] >> 1) ^ (t[i] & 1 ? 0x82F63B78u : 0);
    }
    return t;
  }();
  uint32_t crc = ~0u;
  for (unsigned char byte : bytes) crc = (crc >> 8) ^ table[(crc ^ byte) & 0xff];
  crc = ~crc;
  return ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
}

template <class T>
std::string little_endian(T value) {
  static_assert(std::endian::native == std::endian::little);
  return std::string(reinterpret_cast<const char*>(&value), sizeof value);
}

// Protocol buffers' wire format: https://protobuf.dev/programming-guides/encoding
std::string varint(uint64_t value) {
  std::string bytes;
  for (; value >= 0x80; value >>= 7) bytes += static_cast<char>(value | 0x80);
  return bytes + static_cast<char>(value);
}
std::string fixed64_field(int number, double value) { return varint(number << 3 | 1) + little_endian(value); }
std::string fixed32_field(int number, float value) { return varint(number << 3 | 5) + little_endian(value); }
std::string varint_field(int number, uint64_t value) { return varint(number << 3 | 0) + varint(value); }
std::string bytes_field(int number, const std::string& value) {
  return varint(number << 3 | 2) + varint(value.size()) + value;
}

double now() { return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count(); }

}  // namespace

TensorBoardWriter::TensorBoardWriter(const std::filesystem::path& folder, int64_t first_step) {
  std::filesystem::create_directories(folder);
  path_ = (folder / fmt::format("events.out.tfevents.{:.0f}.{}.notellm", now(), getpid())).string();
  file_ = std::fopen(path_.c_str(), "wb");
  if (!file_) fail(ErrorKind::io, "cannot write {}: {}", path_, std::strerror(errno));
  write_record(fixed64_field(1, now()) + bytes_field(3, "brain.Event:2"));
  constexpr uint64_t session_start = 1;  // of SessionLog.SessionStatus
  if (first_step > 0)
    write_record(fixed64_field(1, now()) + varint_field(2, first_step + 1) +
                 bytes_field(7, varint_field(1, session_start)));
}

TensorBoardWriter::~TensorBoardWriter() { std::fclose(file_); }

void TensorBoardWriter::add(int64_t step, const std::vector<std::pair<std::string, double>>& scalars) {
  std::string summary;
  for (const auto& [tag, value] : scalars)
    summary += bytes_field(1, bytes_field(1, tag) + fixed32_field(2, static_cast<float>(value)));
  write_record(fixed64_field(1, now()) + varint_field(2, step) + bytes_field(5, summary));
}

void TensorBoardWriter::write_record(const std::string& message) {
  const std::string length = little_endian<uint64_t>(message.size());
  const std::string record = length + little_endian(masked_crc(length)) + message + little_endian(masked_crc(message));
  if (std::fwrite(record.data(), 1, record.size(), file_) != record.size() || std::fflush(file_) != 0)
    fail(ErrorKind::io, "cannot write {}: {}", path_, std::strerror(errno));
}

}  // namespace notellm
