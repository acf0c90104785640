#include "pageserver/frames.h"

#include "pageserver/codec.h"
#include "testing.h"

namespace migrate {
namespace {

using namespace migrate::testing;

struct Channels {
  explicit Channels(uint32_t limit = FrameChannel::kDefaultLimit) {
    Pair p = unix_pair();
    raw = raw_stream(std::move(p.client));
    channel = std::make_unique<FrameChannel>(raw_stream(std::move(p.server)), limit);
  }
  void feed(std::vector<uint8_t> bytes) { raw->write(std::as_bytes(std::span(bytes))); }
  std::unique_ptr<Stream> raw;
  std::unique_ptr<FrameChannel> channel;
};

TEST(Frames, RoundTripFromManyThreads) {
  auto [a, b] = raw_pair();
  FrameChannel left(std::move(a)), right(std::move(b));
  auto other = std::async(std::launch::async, [&] { return right.exchange_preface(soon(), 3); });
  EXPECT_EQ(left.exchange_preface(soon(), 2), 3);
  EXPECT_EQ(other.get(), 2);
  std::vector<std::jthread> senders;
  for (uint16_t t = 0; t < 4; ++t)
    senders.emplace_back([&, t] {
      for (size_t i = 0; i < 200; ++i) left.send(t, random_bytes(i * 37, t), Frame::kOptional);
    });
  size_t next[4] = {};
  for (int i = 0; i < 800; ++i) {
    const auto frame = right.recv(soon());
    ASSERT_TRUE(frame);
    ASSERT_LT(frame->type, 4);
    EXPECT_EQ(frame->flags, Frame::kOptional);
    EXPECT_EQ(frame->payload, random_bytes(next[frame->type]++ * 37, frame->type));
  }
  senders.clear();
  left.finish();
  EXPECT_FALSE(right.recv(soon()));
}

TEST(Frames, TimeOutKeepsWhatCame) {
  Channels c;
  c.feed({7, 0, 0});
  EXPECT_THROW(c.channel->recv(Deadline::in(std::chrono::milliseconds(10))), TimedOut);
  c.feed({0, 2, 0, 0, 0, 'h'});
  EXPECT_THROW(c.channel->recv(Deadline::in(std::chrono::milliseconds(10))), TimedOut);
  c.feed({'i'});
  const auto frame = c.channel->recv(soon());
  ASSERT_TRUE(frame);
  EXPECT_EQ(frame->type, 7);
  EXPECT_EQ(frame->payload.size(), 2u);
}

TEST(Frames, LimitsBothWays) {
  Channels c(100);
  EXPECT_THROW(c.channel->send(1, std::vector<std::byte>(101)), Error);
  c.feed({1, 0, 0, 0, 101, 0, 0, 0});
  EXPECT_THROW(c.channel->recv(soon()), Corrupt);
}

TEST(Frames, CutInTheMiddle) {
  Channels c;
  c.feed({1, 0, 0, 0, 9, 0, 0, 0, 'x'});
  c.raw.reset();
  EXPECT_THROW(c.channel->recv(soon()), Disconnected);
}

TEST(Frames, ForeignPreface) {
  Channels c;
  c.feed({'H', 'T', 'T', 'P', '/', '1', '.', '1'});
  EXPECT_THROW(c.channel->exchange_preface(soon()), Corrupt);
}

TEST(Frames, NoiseEndsInExceptions) {
  int refused = 0, frames = 0;
  for (uint64_t seed = 0; seed < 300; ++seed) {
    Channels c(1 << 16);
    auto noise = random_bytes(2000, seed);
    if (seed % 3 == 0)  // short lengths, so that several frames parse
      for (size_t i = 0; i + 8 < noise.size(); i += 16) noise[i + 5] = noise[i + 6] = noise[i + 7] = std::byte{0};
    c.raw->write(noise);
    c.raw.reset();
    try {
      while (const auto frame = c.channel->recv(soon())) {
        ++frames;
        EXPECT_LE(frame->payload.size(), size_t{1} << 16) << "seed " << seed << ": over the limit";
      }
    } catch (const TimedOut&) {
      ADD_FAILURE() << "seed " << seed << ": the end of the connection was not noticed";
    } catch (const Error&) {
      ++refused;
    }
  }
  EXPECT_GT(frames, 0) << "no seed makes frames that parse";
  EXPECT_GT(refused, 290) << "noise was taken for an orderly conversation";
}

TEST(Addresses, Parse) {
  EXPECT_EQ(parse_host_port("host:7400").text(), "host:7400");
  EXPECT_EQ(parse_host_port("[::1]:7400").host, "::1");
  EXPECT_EQ(parse_host_port("[::1]:7400").text(), "[::1]:7400");
  EXPECT_EQ(parse_host_port(":7400", true).port, 7400);
  for (const char* bad : {"", "host", "::1:7400", "[::1]", "[]:1", ":7400", "host:", "host:0", "host:65536", "host:7x",
                          "host:-1", "a b:1", "[::1:7400"})
    EXPECT_THROW(parse_host_port(bad), Refusal) << bad;
}

TEST(Addresses, ListenOnBothFamiliesAndLoopback) {
  Listener listener({"localhost", 0});
  EXPECT_TRUE(listener.loopback_only());
  const Fd client = connect_tcp({"localhost", listener.port()}, soon());
  const auto server = listener.accept(nullptr, soon());
  ASSERT_TRUE(server);
  EXPECT_TRUE(is_loopback_connection(client.get()));
  EXPECT_THROW(Listener({"127.0.0.1", listener.port()}), Refusal);
  EXPECT_FALSE(Listener({"", 0}).loopback_only());
  StopEvent stop;
  stop.trigger();
  EXPECT_FALSE(listener.accept(&stop));
  EXPECT_THROW(listener.accept(nullptr, Deadline::in(std::chrono::milliseconds(1))), TimedOut);
}

TEST(Addresses, NobodyListens) {
  uint16_t port = 0;
  {
    Listener gone({"127.0.0.1", 0});
    port = gone.port();
  }
  EXPECT_THROW(connect_tcp({"127.0.0.1", port}, soon()), Error);
}

}  // namespace
}  // namespace migrate
