#include "pageserver/criu_page_client.h"

#include <algorithm>
#include <array>

#include "pageserver/codec.h"
#include "pageserver/criu_protocol.h"

namespace migrate {

using Command = CriuRequest::Command;

CriuPageClient::CriuPageClient(std::unique_ptr<Stream> stream, uint64_t bandwidth_limit) : stream_(std::move(stream)) {
  limiter_.set_rate(bandwidth_limit);
}

void CriuPageClient::answer(std::span<std::byte> bytes) {
  if (!stream_->read_exact(bytes)) throw Disconnected("the page server " + stream_->peer() + " left; see its log");
}

bool CriuPageClient::open(MemoryId memory) {
  stream_->write(encode_criu_request({.command = Command::open2, .memory = memory}));
  std::array<std::byte, 1> has_parent{};
  answer(has_parent);
  return has_parent[0] != std::byte{0};
}

void CriuPageClient::put(PageFileBuffer, std::span<const PlacedPages> pages) {
  for (const PlacedPages& p : pages) {
    stream_->write(encode_criu_request({.command = Command::add_f,
                                        .flags = p.data == nullptr ? CriuRequest::kInParent : CriuRequest::kPresent,
                                        .pages = p.pages,
                                        .address = p.address}));
    if (p.data != nullptr) send({p.data, p.pages * kPageSize});
  }
}

void CriuPageClient::send(std::span<const std::byte> data) {
  while (!data.empty()) {
    const auto piece = data.first(std::min(limiter_.piece(), data.size()));
    limiter_.acquire(piece.size(), never_);
    stream_->write(piece);
    data = data.subspan(piece.size());
  }
}

void CriuPageClient::finish() {
  stream_->write(encode_criu_request({.command = Command::close}));
  std::array<std::byte, 4> status{};
  answer(status);
  if (Unpacker(status).get<uint32_t>() != 0)
    throw Error("the page server " + stream_->peer() + " could not store all pages; see its log");
  stream_->finish();
}

}  // namespace migrate
