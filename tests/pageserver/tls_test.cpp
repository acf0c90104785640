// Each refusal, seen from both sides.
#include "pageserver/tls.h"

#include <openssl/ssl.h>
#include <poll.h>
#include <sys/stat.h>

#include <cstring>

#include "pageserver/verdict.h"
#include "testing.h"

namespace migrate {
namespace {

using namespace migrate::testing;

constexpr int64_t kDay = 86400;

class Tls : public ::testing::Test {
 protected:
  Tls() { make_keys({.dir = dir, .names = {"source", "destination", "127.0.0.1"}}); }

  std::pair<Outcome, Outcome> meet(const TlsConfig& client, const TlsConfig& server,
                                   const std::string& server_name = "destination") {
    Pair p = tcp_pair();
    return both([&] { return TlsContext(client).connect(std::move(p.client), server_name, soon()); },
                [&] { return TlsContext(server).accept(std::move(p.server), soon()); });
  }
  static void expect_refused(const std::pair<Outcome, Outcome>& out, const std::string& client,
                             const std::string& server) {
    EXPECT_TRUE(out.first.refused) << out.first.error;
    EXPECT_TRUE(out.second.refused) << out.second.error;
    EXPECT_NE(out.first.error.find(client), std::string::npos) << out.first.error;
    EXPECT_NE(out.second.error.find(server), std::string::npos) << out.second.error;
  }
  TempDir temp;
  const std::string dir = temp.path + "/keys";
  TlsConfig source() const { return tls_config(dir, "source"); }
  TlsConfig destination() const { return tls_config(dir, "destination"); }
};

TEST_F(Tls, RoundTripBothWays) {
  auto [client, server] = meet(source(), destination());
  ASSERT_TRUE(client.stream) << client.error;
  ASSERT_TRUE(server.stream) << server.error;
  EXPECT_EQ(client.stream->description(), "TLSv1.3 TLS_AES_128_GCM_SHA256");
  EXPECT_EQ(client.stream->peer_name(), "destination");
  EXPECT_EQ(server.stream->peer_name(), "source");
  const auto data = random_bytes(5 << 20, 1);
  // Full duplex: four threads, a reader and a writer on each stream.
  const auto echo = [&](Stream& s) {
    auto writer = std::async(std::launch::async, [&] { s.write(data); });
    std::vector<std::byte> got(data.size());
    EXPECT_TRUE(s.read_exact(got));
    EXPECT_EQ(got, data);
    writer.get();
  };
  auto other = std::async(std::launch::async, [&] { echo(*server.stream); });
  echo(*client.stream);
  other.get();
  client.stream->finish();
  std::byte b[1];
  EXPECT_FALSE(server.stream->read_exact(b));
}

// Both sides copy in smaller pieces where a buffer lies badly to OpenSSL's: every way it can lie, in odd lengths.
TEST_F(Tls, BuffersMayLieAnywhere) {
  auto [client, server] = meet(source(), destination());
  ASSERT_TRUE(client.stream && server.stream);
  constexpr size_t kLength = 40001, kPlaces = 4096 / 8;
  std::vector<std::byte> sent = random_bytes(kLength + 4096, 3), got(kLength + 4096);
  auto writer = std::async(std::launch::async, [&] {
    for (size_t i = 0; i < kPlaces; ++i) client.stream->write({sent.data() + i * 8, kLength});
  });
  for (size_t i = 0; i < kPlaces; ++i) {
    const std::span to(got.data() + (kPlaces - 1 - i) * 8, kLength);
    // The first bytes by themselves: the rest of their record then goes elsewhere.
    ASSERT_TRUE(server.stream->read_exact(to.first(1 + i % 5000)));
    ASSERT_TRUE(server.stream->read_exact(to.subspan(1 + i % 5000)));
    ASSERT_EQ(std::memcmp(to.data(), sent.data() + i * 8, kLength), 0) << i;
  }
  writer.get();
  EXPECT_FALSE(server.stream->buffered());
}

TEST_F(Tls, BufferedTellsWhatPollDoesNot) {
  auto [client, server] = meet(source(), destination());
  ASSERT_TRUE(client.stream && server.stream);
  const auto data = random_bytes(60000, 4);
  client.stream->write(data);  // four records, which come with one recv(2)
  std::vector<std::byte> got(data.size());
  for (size_t done = 0; done < got.size(); done += 100) {
    ASSERT_TRUE(server.stream->read_exact(std::span(got).subspan(done, 100)));
    if (done + 100 == got.size()) break;
    pollfd p{server.stream->fd(), POLLIN, 0};
    EXPECT_TRUE(server.stream->buffered() || ::poll(&p, 1, 0) == 1) << done;
  }
  EXPECT_EQ(got, data);
  EXPECT_FALSE(server.stream->buffered());
}

TEST_F(Tls, KeyIsChangedOnTheWay) {
  TlsConfig often = source();
  often.key_update_bytes = 100000;
  auto [client, server] = meet(often, destination());
  ASSERT_TRUE(client.stream && server.stream);
  const auto data = random_bytes(8 << 20, 2);
  auto writer = std::async(std::launch::async, [&] { client.stream->write(data); });
  std::vector<std::byte> got(data.size());
  EXPECT_TRUE(server.stream->read_exact(got));
  EXPECT_EQ(got, data);
  writer.get();
}

TEST_F(Tls, AcceptedNameAndAddressName) {
  TlsConfig server = tls_config(dir, "127.0.0.1");
  server.accepted_peers = {"other", "source"};
  auto [c, s] = meet(source(), server, "127.0.0.1");
  EXPECT_TRUE(c.stream) << c.error;
  EXPECT_TRUE(s.stream) << s.error;
}

TEST_F(Tls, NameNotAccepted) {
  TlsConfig server = destination();
  server.accepted_peers = {"other"};
  expect_refused(meet(source(), server), "name source is not accepted", "name source is not accepted");
}

TEST_F(Tls, WrongServerName) {
  expect_refused(meet(source(), destination(), "elsewhere"), "is for destination, not for elsewhere",
                 "is for destination, not for elsewhere");
}

TEST_F(Tls, WrongCaOfClient) {
  make_keys({.dir = temp.path + "/foreign", .names = {"source"}});
  TlsConfig client = tls_config(temp.path + "/foreign", "source");
  client.cacert = source().cacert;
  expect_refused(meet(client, destination()), "its CA did not sign it", "(source) was not signed by the CA in");
}

TEST_F(Tls, WrongCaOfServer) {
  make_keys({.dir = temp.path + "/foreign", .names = {"destination"}});
  TlsConfig server = tls_config(temp.path + "/foreign", "destination");
  server.cacert = source().cacert;
  expect_refused(meet(source(), server), "was not signed by the CA in", "its CA did not sign it");
}

TEST_F(Tls, Expired) {
  make_keys({.dir = dir, .names = {"old"}, .host_not_before = -2 * kDay, .host_not_after = -kDay});
  expect_refused(meet(tls_config(dir, "old"), destination()), "it has expired", "(old) (or of its CA) has expired");
  expect_refused(meet(source(), tls_config(dir, "old"), "old"), "has expired", "it has expired");
}

TEST_F(Tls, NotYetValid) {
  make_keys({.dir = dir, .names = {"young"}, .host_not_before = kDay});
  expect_refused(meet(tls_config(dir, "young"), destination()), "not valid, or not yet", "is not valid yet");
  expect_refused(meet(source(), tls_config(dir, "young"), "young"), "is not valid yet", "not valid, or not yet");
}

TEST_F(Tls, Revoked) {
  const std::string crl = revoke(dir, {dir + "/source.crt"});
  TlsConfig server = destination();
  server.crl = crl;
  expect_refused(meet(source(), server), "it was revoked", "was revoked");
  make_keys({.dir = dir, .names = {"fresh"}});
  auto [c, s] = meet(tls_config(dir, "fresh"), server);
  EXPECT_TRUE(c.stream) << c.error;
  EXPECT_TRUE(s.stream) << s.error;
}

/// A bare OpenSSL client, for what ours would not do.
std::string foreign_client(int fd, int version, bool tls12_only) {
  SSL_CTX* context = SSL_CTX_new(TLS_client_method());
  if (tls12_only) SSL_CTX_set_max_proto_version(context, version);
  SSL* ssl = SSL_new(context);
  ::fcntl(fd, F_SETFL, ::fcntl(fd, F_GETFL) & ~O_NONBLOCK);
  SSL_set_fd(ssl, fd);
  char b = 0;
  std::string result = SSL_connect(ssl) == 1 ? "connected" : "refused";
  if (result == "connected" && SSL_read(ssl, &b, 1) <= 0) result = "refused after the handshake";
  SSL_free(ssl);
  SSL_CTX_free(context);
  return result;
}

TEST_F(Tls, OldVersion) {
  Pair p = tcp_pair();
  auto server = std::async(std::launch::async, [&] {
    return outcome_of([&] { return TlsContext(destination()).accept(std::move(p.server), soon()); });
  });
  EXPECT_EQ(foreign_client(p.client.get(), TLS1_2_VERSION, true), "refused");
  p.client.reset();
  const Outcome out = server.get();
  EXPECT_TRUE(out.refused);
  EXPECT_NE(out.error.find("no TLS version in common"), std::string::npos) << out.error;
}

TEST_F(Tls, NoCertificate) {
  Pair p = tcp_pair();
  auto server = std::async(std::launch::async, [&] {
    return outcome_of([&] { return TlsContext(destination()).accept(std::move(p.server), soon()); });
  });
  EXPECT_EQ(foreign_client(p.client.get(), TLS1_3_VERSION, false), "refused after the handshake");
  p.client.reset();
  const Outcome out = server.get();
  EXPECT_TRUE(out.refused);
  EXPECT_NE(out.error.find("shows no certificate"), std::string::npos) << out.error;
}

TEST_F(Tls, OldServer) {
  Pair p = tcp_pair();
  auto server = std::async(std::launch::async, [&] {
    SSL_CTX* context = SSL_CTX_new(TLS_server_method());
    SSL_CTX_set_max_proto_version(context, TLS1_2_VERSION);
    SSL_CTX_use_certificate_chain_file(context, destination().cert.c_str());
    SSL_CTX_use_PrivateKey_file(context, destination().key.c_str(), SSL_FILETYPE_PEM);
    SSL* ssl = SSL_new(context);
    ::fcntl(p.server.get(), F_SETFL, ::fcntl(p.server.get(), F_GETFL) & ~O_NONBLOCK);
    SSL_set_fd(ssl, p.server.get());
    EXPECT_NE(SSL_accept(ssl), 1);
    SSL_free(ssl);
    SSL_CTX_free(context);
    p.server.reset();
  });
  const Outcome out =
      outcome_of([&] { return TlsContext(source()).connect(std::move(p.client), "destination", soon()); });
  EXPECT_TRUE(out.refused);
  EXPECT_NE(out.error.find("no TLS version in common"), std::string::npos) << out.error;
  server.get();
}

TEST_F(Tls, PlainClientMeetsTlsServer) {
  Pair p = tcp_pair();
  const auto out = both([&] { return connect_plain(std::move(p.client), soon()); },
                        [&] { return TlsContext(destination()).accept(std::move(p.server), soon()); });
  expect_refused(out, "this side wants TLS 1.3", "speaks plain text");
}

TEST_F(Tls, TlsClientMeetsPlainServer) {
  Pair p = tcp_pair();
  const auto out = both([&] { return TlsContext(source()).connect(std::move(p.client), "destination", soon()); },
                        [&] { return accept_plain(std::move(p.server), soon()); });
  expect_refused(out, "does not speak TLS", "speaks TLS, and this side was told --insecure");
}

TEST_F(Tls, GarbageAndSilenceAndHangUp) {
  const TlsContext context(destination());
  {
    Pair p = tcp_pair();
    const std::string hello = "GET / HTTP/1.1\r\n\r\n";
    write_full(p.client.get(), as_bytes_of(hello), "peer");
    ::shutdown(p.client.get(), SHUT_WR);
    EXPECT_THROW(context.accept(std::move(p.server), soon()), Refusal);
  }
  {
    Pair p = tcp_pair();
    EXPECT_THROW(context.accept(std::move(p.server), Deadline::in(std::chrono::milliseconds(50))), TimedOut);
  }
  {
    Pair p = tcp_pair();
    p.client.reset();
    EXPECT_THROW(context.accept(std::move(p.server), soon()), Disconnected);
  }
  for (uint64_t seed = 0; seed < 50; ++seed) {  // noise that starts like TLS
    Pair p = tcp_pair();
    auto noise = random_bytes(400, seed);
    noise[0] = std::byte{22};
    noise[1] = std::byte{3};
    if (seed % 2 == 0) noise[2] = std::byte{1}, noise[3] = std::byte{0};
    write_full(p.client.get(), noise, "peer");
    p.client.reset();
    EXPECT_THROW(context.accept(std::move(p.server), soon()), Error);
  }
}

TEST_F(Tls, StopEndsTheHandshake) {
  Pair p = tcp_pair();
  StopEvent stop;
  auto waiting = std::async(std::launch::async, [&] {
    return outcome_of([&] { return TlsContext(destination()).accept(std::move(p.server), soon(), &stop); });
  });
  stop.trigger();
  EXPECT_NE(waiting.get().error.find("cancelled"), std::string::npos);
}

TEST_F(Tls, CutIsNotAnOrderlyEnd) {
  auto [client, server] = meet(source(), destination());
  ASSERT_TRUE(client.stream && server.stream);
  client.stream.reset();
  std::byte b[1];
  EXPECT_THROW(server.stream->read_some(b), Disconnected);
}

TEST_F(Tls, BadFilesAreNamed) {
  TlsConfig config = source();
  config.key = dir + "/destination.key";
  EXPECT_THROW(TlsContext{config}, Refusal);
  config = source();
  config.cacert = dir + "/missing";
  try {
    TlsContext context(config);
    FAIL();
  } catch (const Refusal& e) {
    EXPECT_NE(std::string(e.what()).find(dir + "/missing"), std::string::npos) << e.what();
  }
}

TEST_F(Tls, AKeyThatOthersMayUseIsRefused) {
  const std::string key = dir + "/source.key";
  const auto refused = [&] {
    try {
      const TlsContext context(source());
      return false;
    } catch (const Refusal& e) {
      EXPECT_NE(std::string(e.what()).find(key), std::string::npos) << e.what();
      return true;
    }
  };
  for (const mode_t mode : {0600, 0400, 0640}) {
    ASSERT_EQ(::chmod(key.c_str(), mode), 0);
    EXPECT_FALSE(refused()) << std::oct << mode;
  }
  for (const mode_t mode : {0644, 0602, 0620}) {
    ASSERT_EQ(::chmod(key.c_str(), mode), 0);
    EXPECT_TRUE(refused()) << std::oct << mode;
  }
  ASSERT_EQ(::chmod(key.c_str(), 0600), 0);
  if (::geteuid() != 0) return;
  ASSERT_EQ(::chown(key.c_str(), 65534, 65534), 0);
  EXPECT_TRUE(refused());
}

TEST_F(Tls, DatesOfOurOwnCertificateAreLookedAt) {
  make_keys({.dir = dir, .names = {"old"}, .host_not_after = -10});
  make_keys({.dir = dir, .names = {"early"}, .host_not_before = kDay});
  make_keys({.dir = dir, .names = {"ends"}, .host_not_after = 3 * kDay});
  const auto dates = [&](const std::string& name, int64_t soon) { return dates_of(dir + "/" + name + ".crt", soon); };
  EXPECT_EQ(dates("source", 7 * kDay), "");
  EXPECT_NE(dates("old", 0).find("old.crt has expired on "), std::string::npos) << dates("old", 0);
  EXPECT_NE(dates("early", 0).find("early.crt is not valid before "), std::string::npos) << dates("early", 0);
  EXPECT_NE(dates("ends", 7 * kDay).find("ends.crt expires on "), std::string::npos) << dates("ends", 7 * kDay);
  EXPECT_EQ(dates("ends", kDay), "");
}

TEST_F(Tls, KeysAreNeverReplacedByAccident) {
  EXPECT_THROW(make_keys({.dir = dir, .names = {"source"}}), Refusal);
  EXPECT_NO_THROW(make_keys({.dir = dir, .names = {"source"}, .force = true}));
  auto [c, s] = meet(source(), destination());  // still the same CA
  EXPECT_TRUE(c.stream && s.stream) << c.error << s.error;
  struct stat st {};
  ASSERT_EQ(::stat((dir + "/source.key").c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 07777, 0600u);
  for (const char* bad : {"", "../x", "a/b", "ca", "-x", "a,IP:1.2.3.4", "a b"})
    EXPECT_THROW(make_keys({.dir = dir, .names = {bad}}), Refusal) << bad;
}

TEST_F(Tls, AFolderWithoutTheKeyOfItsCaMakesNoKeys) {
  ASSERT_EQ(::unlink((dir + "/ca.key").c_str()), 0);
  try {
    make_keys({.dir = dir, .names = {"late"}});
    FAIL();
  } catch (const Refusal& e) {
    EXPECT_NE(std::string(e.what()).find("ca.key: No such file"), std::string::npos) << e.what();
  }
}

}  // namespace
}  // namespace migrate
