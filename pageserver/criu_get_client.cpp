#include "pageserver/criu_get_client.h"

#include <array>
#include <string>

#include "core/base/error.h"
#include "pageserver/codec.h"
#include "pageserver/criu_protocol.h"

namespace migrate {

using Command = CriuRequest::Command;

CriuGetClient::CriuGetClient(std::unique_ptr<Stream> stream, std::chrono::milliseconds patience)
    : stream_(std::move(stream)) {
  stream_->set_idle_timeout(patience);
}

bool CriuGetClient::may_be(std::string_view run_id) {
  for (const MemoryId& memory : {kLazyDump, lazy_dump(run_id)})
    stream_->write(encode_criu_request({.command = Command::parent, .memory = memory}));
  std::array<uint32_t, 2> has{};
  for (uint32_t& one : has) {
    std::array<std::byte, sizeof one> answer{};
    if (!stream_->read_exact(answer)) throw Disconnected("page server " + stream_->peer() + " left without an answer");
    one = Unpacker(answer).get<uint32_t>();
  }
  ours_ = has[0] == 1;
  return !ours_ || has[1] == 1;
}

void CriuGetClient::ask(const AskedPages& asked) {
  stream_->write(encode_criu_request(
      {.command = Command::get, .pages = asked.pages, .address = asked.address, .memory = asked.memory}));
}

uint64_t CriuGetClient::take(const AskedPages& asked, std::span<std::byte> into) {
  const auto wrong = [&](const std::string& why) {
    throw Corrupt("the answer of page server " + stream_->peer(), why);
  };
  std::array<std::byte, kCriuRequestSize> bytes{};
  if (!stream_->read_exact(bytes)) throw Disconnected("page server " + stream_->peer() + " left");
  const CriuRequest answer = decode_criu_answer(bytes);
  if (answer.memory != asked.memory || answer.address != asked.address)
    wrong("it is of pages that were not asked for, or not now");
  if (ours_ && answer.flags == 0 && answer.pages == 0) return 0;
  if (answer.flags != CriuRequest::kPresent || answer.pages == 0)
    wrong("it says that there are no such pages, which the images name");
  if (answer.pages > asked.pages) wrong("it has more pages than were asked for");
  if (!stream_->read_exact(into.first(answer.pages * kPageSize)))
    throw Disconnected("page server " + stream_->peer() + " left in the middle of a page");
  return answer.pages;
}

void CriuGetClient::close() {
  stream_->write(encode_criu_request({.command = Command::close}));
  std::array<std::byte, sizeof(uint32_t)> status{};
  if (!stream_->read_exact(status)) throw Disconnected("page server " + stream_->peer() + " left without an answer");
  if (Unpacker(status).get<uint32_t>() != 0)
    throw Error("page server " + stream_->peer() + " could not end; see its log");
  stream_->finish();
}

}  // namespace migrate
