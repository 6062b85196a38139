import com.sun.net.httpserver.HttpsConfigurator;
import com.sun.net.httpserver.HttpsParameters;
import com.sun.net.httpserver.HttpsServer;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.KeyStore;
import java.security.cert.CertStore;
import java.security.cert.Certificate;
import java.security.cert.CertificateFactory;
import java.security.cert.CollectionCertStoreParameters;
import java.security.cert.PKIXBuilderParameters;
import java.security.cert.X509CertSelector;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import javax.net.ssl.CertPathTrustManagerParameters;
import javax.net.ssl.KeyManagerFactory;
import javax.net.ssl.SSLContext;
import javax.net.ssl.SSLParameters;
import javax.net.ssl.SSLServerSocket;
import javax.net.ssl.SSLSocket;
import javax.net.ssl.TrustManagerFactory;

/**
 * Java's two ways to serve TLS, both demanding a client certificate, as products built on Java do.
 *
 * <p>Arguments: the TLS version, the CA's PEM file, a PEM file of revocation lists, the key stores'
 * password, then KIND=KEYSTORE for each listener (socket or https; PKCS#12). Prints "listening PORT" for each
 * in this order, and "request KIND" when the first byte of a request has come.
 */
public final class MutualTls {
    private static final ExecutorService THREADS = Executors.newCachedThreadPool();

    public static void main(String[] arguments) throws Exception {
        String version = "TLSv" + arguments[0];
        KeyStore trust = KeyStore.getInstance("PKCS12");
        trust.load(null, null);
        try (InputStream pem = Files.newInputStream(Path.of(arguments[1]))) {
            for (Certificate ca : CertificateFactory.getInstance("X.509").generateCertificates(pem)) {
                trust.setCertificateEntry("ca" + trust.size(), ca);
            }
        }
        for (int place = 4; place < arguments.length; place++) {
            String[] parts = arguments[place].split("=", 2);
            SSLContext context = context(parts[1], arguments[3].toCharArray(), trust, arguments[2]);
            boolean isSocket = parts[0].equals("socket");
            int port = isSocket ? serveSocket(context, version) : serveHttps(context, version);
            System.out.println("listening " + port);
        }
    }

    private static SSLContext context(String keys, char[] password, KeyStore trust, String revocation)
            throws Exception {
        KeyStore store = KeyStore.getInstance("PKCS12");
        try (InputStream file = Files.newInputStream(Path.of(keys))) {
            store.load(file, password);
        }
        KeyManagerFactory own = KeyManagerFactory.getInstance("PKIX");
        own.init(store, password);
        PKIXBuilderParameters rules = new PKIXBuilderParameters(trust, new X509CertSelector());
        try (InputStream pem = Files.newInputStream(Path.of(revocation))) {
            var lists = CertificateFactory.getInstance("X.509").generateCRLs(pem);
            rules.addCertStore(CertStore.getInstance("Collection", new CollectionCertStoreParameters(lists)));
        }
        rules.setRevocationEnabled(true);
        TrustManagerFactory others = TrustManagerFactory.getInstance("PKIX");
        others.init(new CertPathTrustManagerParameters(rules));
        SSLContext context = SSLContext.getInstance("TLS");
        context.init(own.getKeyManagers(), others.getTrustManagers(), null);
        return context;
    }

    private static int serveSocket(SSLContext context, String version) throws IOException {
        InetAddress loopback = InetAddress.getLoopbackAddress();
        SSLServerSocket listening =
                (SSLServerSocket) context.getServerSocketFactory().createServerSocket(0, 128, loopback);
        listening.setEnabledProtocols(new String[] {version});
        listening.setNeedClientAuth(true);
        THREADS.execute(() -> {
            while (true) {
                try {
                    SSLSocket socket = (SSLSocket) listening.accept();
                    THREADS.execute(() -> answer(socket));
                } catch (IOException error) {
                    return;
                }
            }
        });
        return listening.getLocalPort();
    }

    private static void answer(SSLSocket socket) {
        try (socket) {
            InputStream in = socket.getInputStream();
            StringBuilder head = new StringBuilder();
            while (head.indexOf("\r\n\r\n") < 0) {
                int next = in.read();
                if (next < 0) {
                    return;
                }
                if (head.length() == 0) {
                    System.out.println("request socket");
                }
                head.append((char) next);
            }
            for (String line : head.toString().split("\r\n")) {
                if (line.toLowerCase().startsWith("content-length:")) {
                    in.readNBytes(Integer.parseInt(line.substring(15).trim()));
                }
            }
            String answer = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nfine\n";
            OutputStream out = socket.getOutputStream();
            out.write(answer.getBytes(StandardCharsets.US_ASCII));
            out.flush();
        } catch (IOException error) {
            System.out.println("refused socket: " + error.getMessage());
        }
    }

    private static int serveHttps(SSLContext context, String version) throws IOException {
        HttpsServer server = HttpsServer.create(new InetSocketAddress(InetAddress.getLoopbackAddress(), 0), 128);
        server.setHttpsConfigurator(new HttpsConfigurator(context) {
            @Override
            public void configure(HttpsParameters parameters) {
                SSLParameters settings = context.getDefaultSSLParameters();
                settings.setProtocols(new String[] {version});
                settings.setNeedClientAuth(true);
                parameters.setSSLParameters(settings);
            }
        });
        server.createContext("/", exchange -> {
            System.out.println("request https");
            exchange.getRequestBody().readAllBytes();
            byte[] body = "fine\n".getBytes(StandardCharsets.US_ASCII);
            exchange.sendResponseHeaders(200, body.length);
            exchange.getResponseBody().write(body);
            exchange.close();
        });
        server.setExecutor(THREADS);
        server.start();
        return server.getAddress().getPort();
    }
}
