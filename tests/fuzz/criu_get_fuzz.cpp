// Lazy pages by CRIU's page server protocol: a hostile client of who gives pages, or (first byte odd) a hostile server
// of who asks for them.
#include <sys/mman.h>
#include <sys/socket.h>

#include <cstring>

#include "fuzz.h"
#include "pageserver/criu_get_client.h"
#include "pageserver/criu_get_server.h"

namespace migrate::fuzz {
namespace {

constexpr size_t kMostBytes = 96 << 10;  ///< fits into a socket's buffer
constexpr uint64_t kMostAnswered = 16;   ///< likewise, of pages
constexpr MemoryId kTask{MemoryId::Kind::task, 42};
constexpr uint64_t kFrom = 0x10000, kTo = 0x20000, kHole = 0x18000;
using Command = CriuRequest::Command;

const GivenMemories& given() {
  static const GivenMemories memories = [] {
    Fd fd(::memfd_create("pages", MFD_CLOEXEC));
    check(::ftruncate(fd.get(), kTo), "make", "pages");
    GivenMemories all;
    const PageSet pages = PageSet(kFrom, kTo) - PageSet(kHole, kHole + kPageSize);
    all.emplace(kTask, GivenMemory{pages, std::move(fd)});
    return all;
  }();
  return memories;
}

struct Feed {
  explicit Feed(std::span<const std::byte> bytes) {
    int fds[2];
    check(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds), "make", "a socket pair");
    feeder.reset(fds[0]);
    stream = raw_stream(Fd(fds[1]));
    if (::send(feeder.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL) < 0) return;
    ::shutdown(feeder.get(), SHUT_WR);
  }
  Fd feeder;
  std::unique_ptr<Stream> stream;
};

void give(std::span<const std::byte> requests) {
  const Feed feed(requests);
  uint64_t answered = 0;
  while (const auto r = read_get(*feed.stream, given(), Deadline::in(std::chrono::seconds(5)))) {
    if (r->command == Command::parent) {
      answer_parent(*feed.stream, r->memory == kLazyDump);
      continue;
    }
    if (r->command != Command::get) {
      demand(r->command == Command::close || r->command == Command::force_close, "a request that cannot be answered");
      return answer_close(*feed.stream);
    }
    const uint64_t end = r->address + r->pages * kPageSize;
    demand(r->memory == kTask && r->pages != 0 && r->address >= kFrom && end <= kTo && end > r->address, "pages");
    demand(end <= kHole || r->address > kHole, "a hole");
    answered += r->pages;
    if (answered > kMostAnswered) return;
    if (!answer_get(*feed.stream, given(), *r)) answer_gone(*feed.stream, *r);
  }
}

void ask(std::span<const std::byte> answers) {
  Feed feed(answers);
  CriuGetClient client(std::move(feed.stream), std::chrono::seconds(5));
  if (!client.may_be("one")) return;
  std::vector<std::byte> into(4 * kPageSize);
  for (uint64_t address = kFrom; address < kTo;) {
    const AskedPages asked{kTask, address, 4};
    const uint64_t pages = client.take(asked, into);
    demand(pages >= 1 && pages <= asked.pages, "an answer of another length");
    address += pages * kPageSize;
  }
}

void put(std::vector<std::byte>& out, std::span<const std::byte> header, size_t pages = 0) {
  out.insert(out.end(), header.begin(), header.end());
  out.resize(out.size() + pages * kPageSize, std::byte{'x'});
}

}  // namespace

const Target kTarget{"criu_get_fuzz", false};

void run(std::span<const std::byte> input) {
  if (input.empty() || input.size() > kMostBytes) return;
  try {
    (input[0] & std::byte{1}) == std::byte{0} ? give(input.subspan(1)) : ask(input.subspan(1));
  } catch (const Error&) {  // as it should be
  }
}

std::vector<std::vector<std::byte>> seeds() {
  std::vector<std::byte> requests{std::byte{0}}, answers{std::byte{1}};
  put(requests, encode_criu_request({.command = Command::parent, .memory = kLazyDump}));
  answers.resize(answers.size() + 8);
  for (const uint64_t pages : {1, 4, 3}) {
    put(requests, encode_criu_request({.command = Command::get, .pages = pages, .address = kFrom, .memory = kTask}));
    const CriuRequest answer{.command = Command::add_f,
                             .flags = CriuRequest::kPresent,
                             .pages = pages,
                             .address = kFrom + (answers.size() > 1 ? answers.size() / kPageSize * kPageSize : 0),
                             .memory = kTask};
    put(answers, encode_criu_answer(answer), pages);
  }
  put(requests, encode_criu_request({.command = Command::close}));
  return {requests, answers};
}

}  // namespace migrate::fuzz
