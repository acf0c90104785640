#include "pageserver/criu_protocol.h"

#include "core/base/error.h"
#include "pageserver/codec.h"

namespace migrate {
namespace {

constexpr uint64_t kMaxId = UINT32_MAX;  // pids and shmids
constexpr unsigned kIdBits = 8;          // dst_id: the kind below, the id above

bool known(uint16_t command) {
  using enum CriuRequest::Command;
  switch (static_cast<CriuRequest::Command>(command)) {
    case add:
    case hole:
    case open:
    case open2:
    case parent:
    case add_f:
    case get:
    case close:
    case force_close:
      return true;
  }
  return false;
}

bool names_memory(CriuRequest::Command command) {
  using enum CriuRequest::Command;
  return command == open || command == open2 || command == parent;
}

bool names_pages(CriuRequest::Command command) {
  using enum CriuRequest::Command;
  return command == add || command == hole || command == add_f || command == get;
}

[[noreturn]] void corrupt(const char* why) { throw Corrupt("a page server request", why); }

std::array<std::byte, kCriuRequestSize> encode(const CriuRequest& r, uint64_t destination) {
  std::array<std::byte, kCriuRequestSize> bytes{};
  const uint32_t command = static_cast<uint32_t>(r.command) | uint32_t{r.flags} << 16;
  Packer(bytes).put(command).put(uint32_t{0}).put(r.pages).put(r.address).put(destination);
  return bytes;
}

MemoryId task_of(uint64_t destination) {
  if (destination == 0 || destination > kMaxId) corrupt("the task that it names is out of range");
  return {MemoryId::Kind::task, destination};
}

CriuRequest decode(std::span<const std::byte, kCriuRequestSize> bytes, bool answer) {
  Unpacker in(bytes);
  const auto word = in.get<uint32_t>();
  in.get<uint32_t>();  // padding, which senders do not clear
  CriuRequest r;
  if (!known(word & 0xffff)) corrupt("it is of an unknown kind; is it CRIU 4.2 that sends?");
  r.command = static_cast<CriuRequest::Command>(word & 0xffff);
  r.flags = static_cast<uint16_t>(word >> 16);
  r.pages = in.get<uint64_t>();
  r.address = in.get<uint64_t>();
  const auto id = in.get<uint64_t>();
  if (names_memory(r.command)) {
    const uint64_t kind = id & 0xff;
    if (kind != 1 && kind != 2) corrupt("it names an unknown kind of memory");
    if (id >> kIdBits > kMaxId) corrupt("the id of its memory is out of range");
    r.memory = {static_cast<MemoryId::Kind>(kind), id >> kIdBits};
  } else if (r.command == CriuRequest::Command::get || answer) {
    r.memory = task_of(id);
  }
  if (names_pages(r.command)) {
    if (r.address % kPageSize != 0 || r.address > kUserSpace || r.pages > (kUserSpace - r.address) / kPageSize)
      corrupt("its pages are out of range");
    if (r.command == CriuRequest::Command::add_f &&
        (r.flags & ~(CriuRequest::kInParent | CriuRequest::kLazy | CriuRequest::kPresent)) != 0)
      corrupt("it has unknown flags");
  }
  return r;
}

}  // namespace

MemoryId lazy_dump(std::string_view run_id) {
  uint32_t hash = 2166136261;  // FNV-1a
  for (const char c : run_id) hash = (hash ^ static_cast<unsigned char>(c)) * 16777619;
  return {MemoryId::Kind::shmem, hash};
}

std::array<std::byte, kCriuRequestSize> encode_criu_request(const CriuRequest& r) {
  if (r.command == CriuRequest::Command::get) return encode(r, r.memory.id);
  return encode(r, static_cast<uint64_t>(r.memory.kind) | r.memory.id << kIdBits);
}

std::array<std::byte, kCriuRequestSize> encode_criu_answer(const CriuRequest& r) { return encode(r, r.memory.id); }

CriuRequest decode_criu_request(std::span<const std::byte, kCriuRequestSize> bytes) { return decode(bytes, false); }

CriuRequest decode_criu_answer(std::span<const std::byte, kCriuRequestSize> bytes) {
  const CriuRequest r = decode(bytes, true);
  if (r.command != CriuRequest::Command::add_f) throw Corrupt("a page server's answer", "it carries no pages");
  return r;
}

}  // namespace migrate
