# walferry in an image that holds nothing else: one static program, the
# certificates, and a user. There is no shell in it.

FROM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -o /image/usr/local/bin/walferry ./cmd/walferry
RUN mkdir -p /image/etc/ssl/certs /image/home/walferry /image/var/lib/walferry && \
    cp /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ && \
    echo 'walferry:x:65532:65532:walferry:/home/walferry:/sbin/nologin' >/image/etc/passwd && \
    echo 'walferry:x:65532:' >/image/etc/group && \
    chmod 700 /image/home/walferry /image/var/lib/walferry

FROM scratch
COPY --from=build /image/usr /usr
COPY --from=build /image/etc /etc
# .pgpass and .aws/credentials are looked for in the first; the spool is in the second.
COPY --from=build --chown=65532:65532 /image/home/walferry /home/walferry
COPY --from=build --chown=65532:65532 /image/var/lib/walferry /var/lib/walferry
ENV HOME=/home/walferry
ENV WALFERRY_HOME=/var/lib/walferry
USER 65532:65532
# The spool must outlive the container: it holds WAL that was reported as flushed.
VOLUME /var/lib/walferry
ENTRYPOINT ["/usr/local/bin/walferry"]
CMD ["receive"]
