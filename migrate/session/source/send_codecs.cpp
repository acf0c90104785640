// Compression and bandwidth limit of a session's page streams.
#include "migrate/session/source/send_session.h"
#include "migrate/session/telling/events_pages.h"
#include "migrate/session/wire/host_facts.h"

namespace migrate {

void SendSession::agree_on_codecs(const wire::Hello& there) {
  codecs_ = options_.compress.mode == Compression::Mode::off ? CodecSet{} : page_codecs(there);
  if (options_.compress.mode == Compression::Mode::fixed) {
    const PageCodec wanted = options_.compress.fixed.codec;
    codecs_.lz4 = codecs_.lz4 && wanted == PageCodec::lz4;
    codecs_.zstd = codecs_.zstd && wanted == PageCodec::zstd;
  }
}

void SendSession::set_up_streams() {
  sender_->set_compression(options_.compress, codecs_);
  sender_->set_bandwidth_limit(options_.bandwidth_limit);
  if (options_.compress.mode == Compression::Mode::off) return;
  tell_codec(events_, sender_->codec(), options_.compress.mode == Compression::Mode::automatic && codecs_.any(),
             codecs_.any() ? "" : "the destination takes no pages that are packed so");
}

void SendSession::tell_codecs() {
  for (const CodecChange& change : sender_->take_codec_changes()) tell_codec(events_, change);
}

void SendSession::lift_bandwidth_limit() {
  if (precopy_ && options_.bandwidth_limit != 0) sender_->set_bandwidth_limit(0);
}

double SendSession::stopped_bandwidth() const { return options_.bandwidth_limit == 0 ? 0 : sender_->unlimited_rate(); }

}  // namespace migrate
