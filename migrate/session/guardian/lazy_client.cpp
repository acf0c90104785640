#include "migrate/session/guardian/lazy_client.h"

#include "core/base/error.h"
#include "migration.pb.h"

namespace migrate {
namespace {

using wire::LazyReply;
using wire::LazyRequest;

constexpr std::chrono::milliseconds kAskAgain{1'000};

wire::LazyMemories to_wire(const std::vector<LazyMemory>& memories) {
  wire::LazyMemories all;
  for (const LazyMemory& memory : memories) {
    wire::LazyMemories::Memory* m = all.add_memories();
    m->set_kind(static_cast<uint32_t>(memory.memory.kind));
    m->set_id(memory.memory.id);
    for (const RemoteRange& range : memory.ranges) {
      m->add_ranges(range.start.get());
      m->add_ranges(range.bytes());
    }
    for (const PageRun& run : memory.missing) {
      m->add_missing(run.address);
      m->add_missing(run.pages);
    }
  }
  return all;
}

LazyState state_of(const LazyReply& reply) {
  if (reply.body_case() == LazyReply::kLost) return {0, {.lost = reply.lost(), .given_up = {}}};
  return {reply.missing(), {.lost = {}, .given_up = reply.given_up()}};
}

}  // namespace

std::optional<LazyClient> LazyClient::connect(const std::string& path) {
  Fd socket = connect_local(path);
  if (!socket) return std::nullopt;
  return LazyClient(PacketSocket(std::move(socket)));
}

LazyReply LazyClient::await(LazyReply::BodyCase kind, const Deadline& deadline) {
  for (;;) {
    LazyReply reply;
    switch (socket_.receive(reply, deadline)) {
      case PacketSocket::Outcome::closed:
        throw GuardianGone("the lazy host is gone");
      case PacketSocket::Outcome::timeout:
        throw Error("ask", "the lazy host", ETIMEDOUT);
      case PacketSocket::Outcome::message:
        break;
    }
    if (reply.body_case() == LazyReply::kFailed) throw Error(reply.failed().sentence());
    if (reply.body_case() == kind || (kind == LazyReply::kMissing && reply.body_case() == LazyReply::kLost))
      return reply;
  }
}

void LazyClient::hold(const std::vector<LazyMemory>& memories, const Deadline& deadline) {
  const wire::LazyMemories all = to_wire(memories);
  std::vector<int> descriptors;
  for (const LazyMemory& memory : memories) {
    descriptors.push_back(memory.userfaultfd.get());
    descriptors.push_back(memory.process.get());
  }
  for (;;) {
    LazyRequest request;
    request.set_memories(true);
    socket_.send(request);
    socket_.send_blob(all);
    socket_.send_descriptors(descriptors);
    try {
      await(LazyReply::kAdopted, Deadline::in(kAskAgain));
      return;
    } catch (const Error& e) {
      if (e.code() != ETIMEDOUT || deadline.passed()) throw;
    }
  }
}

void LazyClient::begin_feed(const wire::Feed& feed, const Deadline& deadline) {
  LazyRequest request;
  *request.mutable_feed() = feed;
  socket_.send(request);
  await(LazyReply::kTaken, deadline);
}

void LazyClient::pass_stream(const Fd& socket) {
  LazyRequest request;
  request.set_stream(true);
  socket_.send(request);
  const int fd = socket.get();
  socket_.send_descriptors(std::span(&fd, 1));
}

LazyState LazyClient::ask(const Deadline& deadline) {
  LazyRequest request;
  request.set_ask(true);
  socket_.send(request);
  return state_of(await(LazyReply::kMissing, deadline));
}

void LazyClient::settled() {
  LazyRequest request;
  request.set_settled(true);
  socket_.send(request);
}

void LazyClient::discard() {
  LazyRequest request;
  request.set_discard(true);
  socket_.send(request);
}

void LazyClient::lose(const std::string& why) {
  LazyRequest request;
  request.set_lost(why.substr(0, 1000));
  socket_.send(request);
}

std::optional<LazyState> LazyClient::news() {
  LazyReply reply;
  switch (socket_.receive(reply, Deadline::in(std::chrono::milliseconds(0)))) {
    case PacketSocket::Outcome::closed:
      throw GuardianGone("the lazy host is gone");
    case PacketSocket::Outcome::timeout:
      return std::nullopt;
    case PacketSocket::Outcome::message:
      break;
  }
  if (reply.body_case() != LazyReply::kMissing && reply.body_case() != LazyReply::kLost) return std::nullopt;
  return state_of(reply);
}

}  // namespace migrate
