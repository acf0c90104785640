#include "pageserver/criu_get_server.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <string>
#include <vector>

#include "pageserver/codec.h"

namespace migrate {
namespace {

using Command = CriuRequest::Command;

/// What is read and sent at a time.
constexpr uint64_t kPiece = 256 << 10;

std::string subject(MemoryId memory, uint64_t address) {
  std::array<char, 32> hex;
  std::snprintf(hex.data(), hex.size(), "0x%llx", static_cast<unsigned long long>(address));
  return "task " + std::to_string(memory.id) + " at " + hex.data();
}

void check_announced(const CriuRequest& r, const GivenMemories& memories) {
  const auto memory = memories.find(r.memory);
  if (memory == memories.end())
    throw Corrupt("a page server request",
                  "it asks for pages of task " + std::to_string(r.memory.id) + ", of which none were announced");
  if (r.pages == 0 || !memory->second.pages.contains(r.address, r.address + r.pages * kPageSize))
    throw Corrupt("a page server request", "it asks for " + std::to_string(r.pages) + " pages of " +
                                               subject(r.memory, r.address) + ", which were not announced");
}

}  // namespace

uint64_t announced_pages(const GivenMemories& memories) {
  uint64_t pages = 0;
  for (const auto& [memory, given] : memories) pages += given.pages.pages();
  return pages;
}

std::optional<CriuRequest> read_get(Stream& stream, const GivenMemories& memories, Deadline deadline) {
  std::array<std::byte, kCriuRequestSize> bytes{};
  if (!stream.read_exact(bytes, deadline)) return std::nullopt;
  const CriuRequest r = decode_criu_request(bytes);
  if (r.command == Command::get) {
    check_announced(r, memories);
  } else if (r.command != Command::close && r.command != Command::force_close && r.command != Command::parent) {
    throw Corrupt("a page server request", "this server gives pages, and takes none");
  }
  return r;
}

bool answer_get(Stream& stream, const GivenMemories& memories, const CriuRequest& get) {
  const GivenMemory& memory = memories.at(get.memory);
  const auto header = encode_criu_answer({.command = Command::add_f,
                                          .flags = CriuRequest::kPresent,
                                          .pages = get.pages,
                                          .address = get.address,
                                          .memory = get.memory});
  // The header goes with the first pages.
  std::vector<std::byte> buffer(header.size() + std::min(kPiece, get.pages * kPageSize));
  std::memcpy(buffer.data(), header.data(), header.size());
  const std::span<std::byte> room = std::span(buffer).subspan(header.size());
  const uint64_t end = get.address + get.pages * kPageSize;
  for (uint64_t at = get.address; at < end;) {
    const std::span<std::byte> part = room.first(std::min<uint64_t>(room.size(), end - at));
    if (pread_full(memory.fd.get(), part, at, subject(get.memory, at)) != part.size()) {
      if (at == get.address) return false;
      throw Error("read", subject(get.memory, at) + ", which is gone", 0);
    }
    stream.write(at == get.address ? std::span(buffer).first(header.size() + part.size()) : part);
    at += part.size();
  }
  return true;
}

void answer_gone(Stream& stream, const CriuRequest& get) {
  stream.write(
      encode_criu_answer({.command = Command::add_f, .pages = 0, .address = get.address, .memory = get.memory}));
}

void answer_parent(Stream& stream, bool has) {
  std::array<std::byte, sizeof(uint32_t)> answer{};
  Packer(answer).put(static_cast<uint32_t>(has));
  stream.write(answer);
}

void answer_close(Stream& stream) {
  std::array<std::byte, sizeof(uint32_t)> status{};
  stream.write(status);
}

}  // namespace migrate
