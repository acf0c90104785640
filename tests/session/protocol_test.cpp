// What a hostile peer can send, and the small calculations around the conversation.
#include <gtest/gtest.h>

#include <sys/socket.h>
#include <array>
#include <random>
#include <set>
#include <thread>

#include "migrate/session/base/session.h"
#include "migrate/session/destination/destination_checks.h"
#include "migrate/session/guardian/packet.h"
#include "migrate/session/handover/destination_sessions.h"
#include "migrate/session/telling/fault.h"
#include "migrate/session/wire/channel.h"
#include "migrate/session/wire/clocks.h"
#include "migrate/session/wire/host_facts.h"

namespace migrate {
namespace {

using std::chrono::milliseconds;
using wire::Message;

struct Pair {
  std::unique_ptr<ControlChannel> a, b;
  Pair() {
    std::array<int, 2> fds{};
    check(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds.data()), "socketpair");
    a = std::make_unique<ControlChannel>(raw_stream(Fd(fds[0])));
    b = std::make_unique<ControlChannel>(raw_stream(Fd(fds[1])));
    std::thread other([this] { b->open(soon()); });
    a->open(soon());
    other.join();
  }
  static Deadline soon() { return Deadline::in(milliseconds(5000)); }
};

TEST(ControlChannel, MessagesGoThrough) {
  Pair p;
  const SessionId id = new_session_id();
  p.a->set_session(id, 3);
  p.b->set_session(id, 1);
  Message m;
  m.mutable_commit();
  p.a->send(m);
  const Message got = p.b->expect(Message::kCommit, Pair::soon());
  EXPECT_EQ(got.epoch(), 3u);
}

TEST(ControlChannel, AnotherSessionsMessageIsCorrupt) {
  Pair p;
  p.a->set_session(new_session_id(), 1);
  p.b->set_session(new_session_id(), 1);
  Message m;
  m.mutable_commit();
  p.a->send(m);
  EXPECT_THROW(p.b->receive(Pair::soon()), Corrupt);
}

TEST(ControlChannel, RefusalsKeepTheirKind) {
  Pair p;
  p.a->refuse("no", true);
  EXPECT_THROW(p.b->receive(Pair::soon()), StaleEpoch);
  Pair q;
  q.a->refuse("no");
  EXPECT_THROW(q.b->receive(Pair::soon()), Refusal);
  EXPECT_THROW(q.b->receive(Pair::soon()), Disconnected);
}

TEST(ControlChannel, OutOfTurnIsCorruptAndAbortIsSaid) {
  Pair p;
  Message m;
  m.mutable_ready();
  p.a->send(m);
  EXPECT_THROW(p.b->expect(Message::kCommit, Pair::soon()), Corrupt);
  m.mutable_abort()->set_reason("tired");
  p.a->send(m);
  try {
    p.b->expect(Message::kCommit, Pair::soon());
    FAIL();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("tired"), std::string::npos);
  }
}

TEST(Bounds, ImpossibleMessages) {
  const auto bad = [](auto fill) {
    Message m;
    fill(m);
    EXPECT_THROW(check_bounds(m), Corrupt);
  };
  bad([](Message&) {});
  bad([](Message& m) { m.mutable_commit(), m.set_session("short"); });
  bad([](Message& m) { m.mutable_begin()->set_streams(0); });
  bad([](Message& m) { m.mutable_begin()->set_streams(1000); });
  bad([](Message& m) { m.mutable_images_part()->set_data(std::string((1 << 20) + 1, 'x')); });
  bad([](Message& m) { m.mutable_abort()->set_reason(std::string(5000, 'x')); });
  bad([](Message& m) { m.mutable_check()->add_files()->set_path(std::string(5000, 'x')); });
  bad([](Message& m) { m.mutable_check()->add_files()->set_path(std::string("/a\0b", 4)); });
  bad([](Message& m) { m.mutable_check()->add_ports()->set_address("123"); });
  bad([](Message& m) {
    for (wire::Check::KernelMappings& layout = *m.mutable_check()->add_kernel_mappings(); layout.ends_size() < 200;)
      layout.add_ends(0);
  });
  bad([](Message& m) {
    for (int i = 0; i < 300; ++i) m.mutable_hello()->add_features("f");
  });
  bad([](Message& m) { m.mutable_hello()->set_host(std::string(300, 'h')); });
}

TEST(Bounds, RandomBytesNeverHurt) {
  std::mt19937 random(7);  // the same every time
  for (int i = 0; i < 20'000; ++i) {
    std::string bytes(random() % 64, '\0');
    for (char& c : bytes) c = static_cast<char>(random());
    Message m;
    if (!m.ParseFromString(bytes)) continue;
    try {
      check_bounds(m);
    } catch (const Corrupt&) {
      continue;
    }
  }
}

TEST(PackedImages, RoundTripAndDamage) {
  ImageSet images;
  images.adopt("core-1.img", {std::byte{1}, std::byte{2}});
  images.adopt("inventory.img", {});
  const std::vector<std::byte> packed = encode_images(images);
  EXPECT_EQ(decode_images(packed).images(), images.images());
  // Cut anywhere but between two images it is damaged.
  for (size_t cut = 1; cut < packed.size(); ++cut) {
    if (cut == 4 + 10 + 8 + 2) continue;
    EXPECT_THROW(decode_images(std::span(packed).first(cut)), Corrupt) << cut;
  }
  std::vector<std::byte> long_name = packed;
  long_name[3] = std::byte{0xff};
  EXPECT_THROW(decode_images(long_name), Corrupt);
  std::vector<std::byte> long_image = packed;
  long_image[4 + 10 + 7] = std::byte{0xff};
  EXPECT_THROW(decode_images(long_image), Corrupt);
  std::vector<std::byte> twice = packed;
  twice.insert(twice.end(), packed.begin(), packed.end());
  EXPECT_THROW(decode_images(twice), Corrupt);
}

TEST(HostFacts, AHostFitsItself) {
  const wire::Hello here = host_facts();
  EXPECT_TRUE(incompatibilities(here, here).empty());
  EXPECT_GT(here.cpu_flags_size(), 10);
  wire::Hello poor = here;
  poor.clear_cpu_flags();
  EXPECT_FALSE(incompatibilities(here, poor).empty());
  poor = here;
  poor.set_xsave_features(3);
  EXPECT_FALSE(incompatibilities(here, poor).empty());
  wire::Hello newer = here;
  newer.set_version(kProtocolVersion + 1);
  EXPECT_THROW(check_hello_version(newer), Refusal);
  newer = here;
  newer.add_needs("teleport");
  EXPECT_THROW(check_hello_version(newer), Refusal);
}

TEST(Clocks, TheTreeNeverGoesBackwards) {
  // Source 100,000 s ahead; the answer came somewhere inside the round trip.
  const int64_t ahead = 100'000'000'000'000;
  std::vector<ClockSample> samples;
  for (const int64_t trip : {500'000, 40'000, 900'000}) {
    ClockSample s;
    s.before_ns = ahead + 1'000'000;
    s.after_ns = s.before_ns + trip;
    s.peer_ns = 1'000'000 + trip / 3;
    samples.push_back(s);
  }
  const TreeClocks clocks = estimate_clocks(samples, {5, 7}, 1000);
  EXPECT_EQ(clocks.uncertainty_ns, 40'000);
  const int64_t estimated = clocks.monotonic_ns - clocks.at_destination_ns;
  EXPECT_GE(estimated, ahead + 5);
  EXPECT_LE(estimated, ahead + 5 + 40'000);
  EXPECT_EQ(clocks.boottime_ns - clocks.monotonic_ns, 1000 + 2);
}

TEST(Check, WhatIsInTheWayFitsIntoAReply) {
  wire::Check check;
  for (int i = 0; i < 5000; ++i) check.add_pids(1U << 30);
  for (int i = 0; i < 5000; ++i) check.add_uids(7);
  check.add_files()->set_path("/" + std::string(4090, 'p'));
  ReceiveOptions options;
  for (const bool pids : {true, false}) {
    options.allow_uids.assign(pids ? 0 : 1, 1000);
    const std::vector<std::string> reasons = what_is_in_the_way(check, options).reasons;
    EXPECT_FALSE(reasons.empty());
    wire::Message reply;
    for (const std::string& reason : reasons) reply.mutable_check_reply()->add_refusals(reason);
    EXPECT_NO_THROW(check_bounds(reply)) << reasons.size();
    check.clear_pids();
  }
  options.allow_uids.clear();
  const std::vector<std::string> reasons = what_is_in_the_way(check, options).reasons;
  ASSERT_EQ(reasons.size(), 1u);
  EXPECT_LE(reasons.front().size(), 4096u);
}

TEST(FaultPoints, AreNamedOnce) {
  const std::span<const std::string_view> names = fault_points();
  EXPECT_EQ(std::set<std::string_view>(names.begin(), names.end()).size(), names.size());
  EXPECT_THROW(fault_point("nowhere"), std::logic_error);
  ::setenv("MIGRATE_FAULT", "source-agent.ready:fail,source-agent.begun:nothing", 1);
  EXPECT_THROW(fault_point("source-agent.ready"), Error);
  EXPECT_NO_THROW(fault_point("source-agent.begun"));
  ::unsetenv("MIGRATE_FAULT");
  EXPECT_NO_THROW(fault_point("source-agent.ready"));
}

}  // namespace
}  // namespace migrate
